//! Requests from the client's pod by real curl, and what the answers tell.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lab::{Lab, exec};

/// One answer of a backend: `VERSION POD PEER PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The version that the backend says it is.
    pub version: String,
    /// The backend's pod.
    pub pod: String,
    /// The address that the backend saw.
    pub peer: String,
}

/// Sends `count` requests one after another with one curl in the client's pod. The count is part of the query, so
/// that each is a request of its own; `options` go to curl as they are.
pub fn curl(lab: &Lab, url: &str, count: usize, options: &[&str]) -> Result<Vec<Answer>> {
    let mut command = lab.pod("client")?.command("curl")?;
    command.args(["-sS", "--fail", "--max-time", "60"]).args(options).arg(format!("{url}?n=[1-{count}]"));
    let text = exec::stdout(&mut command)?;
    let answers: Vec<Answer> = text.lines().map(parse).collect::<Result<_>>()?;
    if answers.len() != count {
        bail!("{count} requests to {url} got {} answers", answers.len());
    }
    Ok(answers)
}

/// How often each pod answered.
pub fn by_pod(answers: &[Answer]) -> BTreeMap<&str, usize> {
    answers.iter().fold(BTreeMap::new(), |mut pods, answer| {
        *pods.entry(answer.pod.as_str()).or_default() += 1;
        pods
    })
}

/// How many answers came from a version.
pub fn of_version(answers: &[Answer], version: &str) -> usize {
    answers.iter().filter(|answer| answer.version == version).count()
}

/// The fewest and the most answers of a version in any `window` in a row.
pub fn extremes(answers: &[Answer], version: &str, window: usize) -> Option<(usize, usize)> {
    let counts = answers.windows(window).map(|run| of_version(run, version));
    counts.fold(None, |extremes, count| {
        let (low, high) = extremes.unwrap_or((count, count));
        Some((low.min(count), high.max(count)))
    })
}

/// A count of answers per pod, as one line.
pub fn shares<'a>(pods: impl IntoIterator<Item = (&'a str, usize)>) -> String {
    let shares: Vec<String> = pods.into_iter().map(|(pod, count)| format!("{pod} {count}")).collect();
    if shares.is_empty() { "no answer".to_owned() } else { shares.join(", ") }
}

fn parse(line: &str) -> Result<Answer> {
    let mut words = line.split(' ').map(str::to_owned);
    let mut word = || words.next().with_context(|| format!("no answer of a backend: {line:?}"));
    Ok(Answer { version: word()?, pod: word()?, peer: word()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(versions: &str) -> Vec<Answer> {
        let answer =
            |c: char| Answer { version: format!("v{c}"), pod: format!("pod-{c}"), peer: "x".to_owned() };
        versions.chars().map(answer).collect()
    }

    #[test]
    fn answers_are_read_and_counted() {
        let answer = parse("v1 order-v1-a 10.10.1.1 /x").expect("an answer");
        assert_eq!((answer.pod.as_str(), answer.peer.as_str()), ("order-v1-a", "10.10.1.1"));
        parse("").expect_err("nothing");
        parse("curl failed").expect_err("two words");
        let answers = answers("1121");
        assert_eq!(of_version(&answers, "v2"), 1);
        assert_eq!(shares(by_pod(&answers)), "pod-1 3, pod-2 1");
    }

    #[test]
    fn extremes_slide_over_every_run() {
        assert_eq!(extremes(&answers("112211"), "v2", 3), Some((1, 2)));
        assert_eq!(extremes(&answers("11"), "v2", 3), None);
    }
}
