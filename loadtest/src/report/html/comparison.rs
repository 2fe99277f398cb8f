//! Several targets on one page: what each accepted, what one is to another, and how their latencies are spread.

use std::fmt::Write;

use super::chart::{Axis, Chart, Form, Scale, Series, Unit};
use super::{Table, configuration, escape, frame, percentile_chart, warnings};
use crate::compare::{Compared, Comparison, Spread};
use crate::measure::Phase;
use crate::report::Report;
use crate::report::units::digits;

/// The page of a comparison.
pub fn comparison_page(comparison: &Comparison) -> String {
    let targets = comparison.targets();
    let title = targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    let _ = write!(
        body,
        "<p class=\"note\">SMTP load test, the same load against each target in turn</p><h1>{}</h1>",
        escape(&title)
    );
    body.push_str(&warnings(&comparison.remarks()));
    bars(&mut body, targets);
    figures(&mut body, targets);
    body.push_str(&rounds(targets).figure());
    let runs: Vec<(&str, &Report)> =
        targets.iter().filter_map(|target| Some((target.name.as_str(), target.typical()?))).collect();
    let latencies: Vec<_> =
        runs.iter().filter_map(|(name, run)| Some((*name, run.phase(Phase::EndOfData)?))).collect();
    body.push_str(
        &percentile_chart("End-of-data → 250 by percentile, of each target's middle run", &latencies)
            .figure(),
    );
    if let Some((_, run)) = runs.first() {
        configuration(&mut body, run);
    }
    frame(&title, &body)
}

/// Rates as bars: the eye compares lengths before it reads digits.
fn bars(body: &mut String, targets: &[Compared]) {
    let rate = |target: &Compared| target.figures.as_ref().map_or(0.0, |figures| figures.rate.median);
    let most = targets.iter().map(rate).fold(0.0, f64::max);
    if most == 0.0 {
        return;
    }
    body.push_str("<h2>Accepted messages a second</h2><div class=\"bars\">");
    for target in targets {
        let _ = write!(
            body,
            "<span>{}</span><div><i style=\"width:{:.2}%\"></i><b>{}</b></div>",
            escape(&target.name),
            rate(target) * 70.0 / most,
            digits(rate(target))
        );
    }
    body.push_str("</div>");
}

fn figures(body: &mut String, targets: &[Compared]) {
    let cell = |spread: Option<Spread>, unit: f64, places: usize| {
        spread.map_or_else(|| "–".to_owned(), |spread| spread.in_unit(unit, places))
    };
    let mut table = Table {
        heading: vec![
            "",
            "messages/s",
            "of the first",
            "p50 ms",
            "p99 ms",
            "server CPU-s for 1000",
            "times the first",
            "memory MiB",
        ],
        rows: Vec::new(),
    };
    for target in targets {
        let Some(figures) = &target.figures else {
            table.rows.push(("bad", vec![target.name.clone(), "–".to_owned()]));
            continue;
        };
        let cells = vec![
            target.name.clone(),
            figures.rate.in_unit(1.0, 0),
            cell(figures.rate_ratio, 1.0, 3),
            cell(figures.p50, 1e-3, 2),
            cell(figures.p99, 1e-3, 2),
            cell(figures.cpu_seconds_per_1000, 1.0, 4),
            cell(figures.cpu_ratio, 1.0, 1),
            cell(figures.memory_octets, 1.0 / f64::from(1 << 20), 1),
        ];
        table.rows.push(("", cells));
    }
    let _ = write!(
        body,
        "<h2>Figures</h2><p class=\"note\">Median of the rounds, smallest and largest behind it. Latency is end-of-data → \
         250. Ratios are to the first target within a round.</p><div class=\"compared\">{}</div>",
        table.html()
    );
}

fn rounds(targets: &[Compared]) -> Chart {
    let series = targets.iter().map(|target| Series {
        name: target.name.clone(),
        points: (1..)
            .zip(&target.rounds)
            .map(|(round, run)| (f64::from(round), run.as_ref().map_or(f64::NAN, |run| run.rate)))
            .collect(),
        form: Form::Line,
    });
    Chart {
        title: "Round by round".to_owned(),
        caption: "Messages accepted a second. What rises and falls with the others is the machine."
            .to_owned(),
        x: Axis { label: "round", scale: Scale::Linear, unit: Unit::Count, range: None },
        y: Axis {
            label: "messages/s (logarithmic)",
            scale: Scale::Logarithmic,
            unit: Unit::PerSecond,
            range: None,
        },
        series: series.collect(),
        bands: Vec::new(),
    }
}
