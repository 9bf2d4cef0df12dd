//! The agent's own log: set up once, its filter changed while it runs.

use std::fmt::{self, Write as _};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::json::JsonLine;
use super::{LineWriter, rfc3339};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line.
    Json,
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("log filter `{filter}`: {source}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong.
        source: ParseError,
    },
    /// A word that is neither a level nor `MODULE=LEVEL`.
    #[error("`{level}` is no log level; use error, warn, info, debug, trace or off, or MODULE=LEVEL")]
    Level {
        /// As it was given.
        level: String,
    },
    /// The log was set up before.
    #[error("the log is already set up: {0}")]
    Twice(#[from] TryInitError),
    /// The writing thread could not be started.
    #[error("the log's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// The filter can't be replaced any more.
    #[error("the log filter cannot be changed: {0}")]
    Gone(#[from] reload::Error),
}

/// Changes the log's filter and flushes it. Clones are handles of the same log.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: LineWriter,
}

impl LogHandle {
    /// The filter in force, e.g. `info,agent::config=debug`.
    pub fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        Ok(self.filter.reload(parse(filter)?)?)
    }

    /// Sets one module's level and leaves the others as they are.
    pub fn set_level_of(&self, module: &str, level: &str) -> Result<(), LogError> {
        let mine = format!("{module}=");
        let current = self.filter();
        let others =
            current.split(',').filter(|directive| !directive.is_empty() && !directive.starts_with(&mine));
        let directives: Vec<&str> = others.collect();
        self.set_filter(&format!("{},{mine}{level}", directives.join(",")))
    }

    /// The writer, to count what it drops.
    pub fn writer(&self) -> &LineWriter {
        &self.writer
    }

    /// Waits until the lines so far are written, for `limit` at most.
    pub fn flush(&self, limit: Duration) -> bool {
        self.writer.flush(limit)
    }
}

/// Sets up the process's log to stderr, from a thread of its own: a blocked log pipe holds up nobody.
pub fn init(filter: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = build(filter, format, io::stderr())?;
    subscriber.try_init()?;
    Ok(handle)
}

pub(crate) fn build(
    filter: &str,
    format: LogFormat,
    sink: impl io::Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync, LogHandle), LogError> {
    let writer = LineWriter::new(sink)?;
    let (filter, reloadable) = reload::Layer::new(parse(filter)?);
    let lines = Lines(Arc::new(writer.clone()));
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.with_timer(Clock).boxed(),
        LogFormat::Json => layer.event_format(JsonEvent).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    Ok((subscriber, LogHandle { filter: reloadable, writer }))
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    // The library takes a bare word that is no level for the name of a module to trace, so `inf` would silence the log.
    // It also takes the empty word for `error`.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let unknown = filter.split(',').find(|part| !part.contains(['=', '[']) && !is_level(part));
    if let Some(level) = unknown {
        return Err(LogError::Level { level: level.to_owned() });
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

/// Gives the formatter the shared writer.
struct Lines(Arc<LineWriter>);

/// One event's text.
struct Line<'a>(&'a LineWriter);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl io::Write for Line<'_> {
    /// The formatter hands over whole events.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", rfc3339(SystemTime::now()))
    }
}

/// `{"level":"info","time":"...","scope":"agent::config","message":"...", fields...}`; fields of the spans around the
/// event come as one text under `span`.
struct JsonEvent;

impl<S, N> FormatEvent<S, N> for JsonEvent
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut buffer = Vec::with_capacity(256);
        let mut line = JsonLine::new(&mut buffer);
        let metadata = event.metadata();
        line.text("level", level(*metadata.level()))
            .display("time", rfc3339(SystemTime::now()))
            .text("scope", metadata.target());
        event.record(&mut Fields(&mut line));
        let spans = spans(context);
        line.optional("span", (!spans.is_empty()).then_some(spans.as_str()));
        line.finish();
        writer.write_str(&String::from_utf8_lossy(&buffer))
    }
}

fn spans<S, N>(context: &FmtContext<'_, S, N>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut text = String::new();
    for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
        let separator = if text.is_empty() { "" } else { ":" };
        // Writing into a String cannot fail.
        let _ = write!(text, "{separator}{}", span.name());
        if let Some(fields) = span.extensions().get::<tracing_subscriber::fmt::FormattedFields<N>>()
            && !fields.is_empty()
        {
            let _ = write!(text, "{{{fields}}}");
        }
    }
    text
}

fn level(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

struct Fields<'a, 'b>(&'a mut JsonLine<'b>);

impl Visit for Fields<'_, '_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.raw(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.raw(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.raw(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.display(field.name(), format_args!("{value:?}"));
    }
}
