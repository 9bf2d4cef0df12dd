//! The chart: how each proxy stands to nginx, as an SVG that needs nothing else.

use std::fmt::Write as _;

use super::contender::Contender;
use super::figure::Figure;
use super::report::Report;
use super::row::Metric;

const LABEL_WIDTH: f64 = 90.0;
const BAR_HEIGHT: f64 = 13.0;
const GROUP_GAP: f64 = 14.0;
/// The width of a ratio of 1.
const UNIT: f64 = 300.0;
/// Longer bars are cut: direct is not what the eye should compare with.
const RATIO_MAX: f64 = 2.2;
const TOP: f64 = 58.0;

/// Draws the rates of the report as ratios to nginx.
pub fn draw(report: &Report) -> String {
    let rates: Vec<&Figure> = report.figures.iter().filter(|figure| figure.metric == Metric::Rate).collect();
    let mut body = String::new();
    let mut y = TOP;
    for figure in rates {
        y = group(&mut body, report, figure, y) + GROUP_GAP;
    }
    let width = LABEL_WIDTH + UNIT * RATIO_MAX + 150.0;
    let line = LABEL_WIDTH + UNIT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"14\">Requests per second, nginx = 1 (median of paired rounds; whisker: lowest to highest)</text>\n\
         <text x=\"8\" y=\"34\">This run: {}</text>\n\
         {body}<line x1=\"{line}\" x2=\"{line}\" y1=\"{}\" y2=\"{y:.0}\" stroke=\"#333\" stroke-dasharray=\"3\"/>\n</svg>\n",
        escaped(&report.verdict()),
        TOP - 8.0
    )
}

/// Text as XML takes it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// One row's bars; returns where they end.
fn group(body: &mut String, report: &Report, figure: &Figure, top: f64) -> f64 {
    let mut y = top;
    // Writing to a String cannot fail.
    let _ = writeln!(body, "<text x=\"8\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", y + 10.0, figure.row);
    for contender in report.contenders.iter().filter(|contender| **contender != Contender::Direct) {
        let Some(ratio) = figure.ratio(*contender, Contender::Nginx) else { continue };
        let at = |value: f64| LABEL_WIDTH + UNIT * value.min(RATIO_MAX);
        let middle = y + BAR_HEIGHT / 2.0;
        let _ = writeln!(
            body,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#333\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{} {:.2}</text>",
            at(ratio.median) - LABEL_WIDTH,
            BAR_HEIGHT - 2.0,
            colour(*contender),
            at(ratio.low),
            at(ratio.high),
            at(ratio.high) + 5.0,
            y + 9.5,
            contender.name(),
            ratio.median
        );
        y += BAR_HEIGHT;
    }
    y
}

fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Direct | Contender::Before => "#bbbbbb",
        Contender::Nginx => "#6ba368",
        Contender::Haproxy => "#6a9fb5",
        Contender::Envoy => "#b57fb3",
        Contender::Pingora => "#d9a441",
        Contender::Sluice => "#d1495b",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_proxy_has_a_bar_and_direct_has_none() {
        let values = BTreeMap::from([
            (Contender::Direct, vec![Some(200.0)]),
            (Contender::Nginx, vec![Some(100.0)]),
            (Contender::Sluice, vec![Some(120.0)]),
        ]);
        let figures = vec![Figure { row: "100@32", metric: Metric::Rate, values }];
        let contenders = vec![Contender::Direct, Contender::Nginx, Contender::Sluice];
        let svg = draw(&Report { contenders, figures, remarks: Vec::new(), facts: Vec::new() });
        assert!(
            svg.contains("sluice 1.20") && svg.contains("nginx 1.00") && !svg.contains("direct"),
            "{svg}"
        );
        assert!(svg.contains("This run: valid"), "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
