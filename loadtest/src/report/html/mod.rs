//! The figures as one HTML page that needs nothing else: no network, no other file, light and dark, on paper too.
//!
//! [`page`] is a run's, [`comparison_page`] that of several targets. [`frame`], [`Table`] and [`Chart`] know nothing of a run, and make other pages as well.
//!
//! Invariants:
//! - whatever a server or a command line said goes through [`escape`]; the script reads it as text, never as HTML;
//! - a policy within the page forbids it to load anything from anywhere.

mod chart;
mod comparison;

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

pub use chart::{Axis, Band, Chart, Form, Scale, Series, Unit};
pub use comparison::comparison_page;

use super::units::{Quantity, digits, duration, grouped, memory, octets, one_line};
use super::{Cost, Latency, Point, Report, settings};
use crate::measure::Phase;

/// The percentiles that a chart of them shows. What is longer than the last is in the table.
pub const PERCENTILES: (f64, f64) = (50.0, 99.99);

/// The page of a run.
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    heading(&mut body, report);
    body.push_str(&warnings(&report.warnings));
    tiles(&mut body, report);
    body.push_str(&throughput(report).figure());
    body.push_str(&latency_course(report).figure());
    body.push_str(&percentiles(report).figure());
    latencies(&mut body, report);
    schedule(&mut body, report);
    replies(&mut body, report);
    costs(&mut body, report);
    if let Some(hostile) = &report.hostile {
        let _ = write!(body, "<h2>Hostile clients</h2><pre>{}</pre>", escape(&hostile.to_string()));
    }
    configuration(&mut body, report);
    let _ = write!(
        body,
        "<footer>Made by loadtest {}, run {}. Only a 250 to an end-of-data counts as accepted. Latencies are those of \
         commands that were accepted, and of what counted: not of the warm-up.</footer>",
        escape(report.loadtest),
        escape(&report.run)
    );
    frame(&format!("{}: {} messages/s", report.plan.target.name, digits(report.rate)), &body)
}

/// A whole page around `body`, which is HTML; `title` is text.
pub fn frame(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{}</style></head><body><main>{body}</main><script>{}</script></body></html>\n",
        escape(title),
        include_str!("style.css"),
        include_str!("read.js")
    )
}

/// `text` as HTML that shows it, within an element or a quoted attribute. Controls other than a line end do not get there.
pub fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            '\r' => {}
            control if control.is_control() && control != '\n' => html.push('\u{fffd}'),
            other => html.push(other),
        }
    }
    html
}

/// A box that cannot be missed; nothing where there are no warnings.
pub fn warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let mut html =
        "<div class=\"warnings\" role=\"alert\"><b>Read these figures with care</b><ul>".to_owned();
    for warning in warnings {
        let _ = write!(html, "<li>{}</li>", escape(&one_line(warning)));
    }
    html + "</ul></div>"
}

/// A table. Cells are text. A column whose heading begins with a space holds words; all others but the first hold numbers. A column
/// with nothing but a heading is not shown.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// One for each column.
    pub heading: Vec<&'static str>,
    /// A style of the row (`""`, `"bad"`, `"strong"`), and its cells.
    pub rows: Vec<(&'static str, Vec<String>)>,
}

impl Table {
    /// As HTML; scrolls within itself where a page is narrower.
    pub fn html(&self) -> String {
        let mut html = "<div class=\"scroll\"><table><tr>".to_owned();
        let style =
            |column: usize| match self.heading.get(column).is_some_and(|heading| heading.starts_with(' ')) {
                true => " class=\"words\"",
                false => "",
            };
        let has_content = |column: usize| {
            let cell =
                |(_, cells): &(&str, Vec<String>)| cells.get(column).is_some_and(|cell| !cell.is_empty());
            self.rows.iter().any(cell)
        };
        for (column, heading) in self.heading.iter().enumerate().filter(|(column, _)| has_content(*column)) {
            let _ = write!(html, "<th{}>{}</th>", style(column), escape(heading.trim()));
        }
        html.push_str("</tr>");
        for (class, cells) in &self.rows {
            let _ = write!(html, "<tr class=\"{class}\">");
            for (column, cell) in cells.iter().enumerate().filter(|(column, _)| has_content(*column)) {
                let _ = write!(html, "<td{}>{}</td>", style(column), escape(cell));
            }
            html.push_str("</tr>");
        }
        html + "</table></div>"
    }
}

fn heading(body: &mut String, report: &Report) {
    let target = &report.plan.target;
    let when = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(report.started));
    let when = when.to_string().replace('T', " ").replace('Z', " UTC");
    let _ = write!(
        body,
        "<p class=\"kind\">SMTP load test · {when}</p><h1>{}</h1><p class=\"greeting\"><bdi>{}</bdi></p>",
        escape(&target.name),
        escape(&match report.probe.greeting.as_str() {
            "" => target.address.to_string(),
            greeting => format!("220 {}", one_line(greeting)),
        })
    );
}

fn tiles(body: &mut String, report: &Report) {
    let of = |number: String, unit: &str| (number, unit.to_owned());
    let in_units = |Quantity { number, unit }| (number, unit.to_owned());
    let content = octets(report.octets_per_second);
    let mut tiles = vec![
        ("first", "Accepted".to_owned(), of(digits(report.rate), "messages/s")),
        ("", "Content accepted".to_owned(), (content.number, format!("{}/s", content.unit))),
    ];
    if let Some(latency) = report.phase(Phase::EndOfData) {
        tiles.push(("", "End-of-data → 250, p50".to_owned(), in_units(duration(latency.p50))));
        tiles.push(("", "End-of-data → 250, p99".to_owned(), in_units(duration(latency.p99))));
    }
    if let Some(server) = &report.server {
        if let Some(cost) = server.cost.cpu_seconds_per_1000 {
            tiles.push(("", "Server’s CPU for 1000".to_owned(), of(format!("{cost:.4}"), "s")));
        }
        tiles.push(("", "Server’s memory, most".to_owned(), in_units(memory(server.memory_octets))));
    }
    let elapsed = duration(report.elapsed_seconds * 1e6);
    tiles.push(("", format!("Accepted in {elapsed}"), of(grouped(report.accepted), "")));
    if report.recipients != report.accepted {
        tiles.push(("", "Recipients of those".to_owned(), of(grouped(report.recipients), "")));
    }
    let style = if report.failed > 0 { "bad" } else { "" };
    tiles.push((style, "Messages failed".to_owned(), of(grouped(report.failed), "")));
    body.push_str("<div class=\"tiles\">");
    for (style, name, (number, unit)) in tiles {
        let _ = write!(
            body,
            "<div class=\"tile {style}\"><span>{name}</span><b>{number}<small>{unit}</small></b></div>"
        );
    }
    body.push_str("</div>");
}

/// Accepted messages a second, from the beginning of the load.
fn throughput(report: &Report) -> Chart {
    let seconds = report.course.seconds;
    let accepted = at_middles(report, |point| point.accepted as f64 / seconds);
    let failed: Vec<(f64, f64)> =
        at_middles(report, |point| point.failed as f64).into_iter().filter(|point| point.1 > 0.0).collect();
    let mut series = vec![Series { name: "accepted".to_owned(), points: accepted, form: Form::Area }];
    if let Some(schedule) = &report.schedule {
        let points = at_middles(report, |_| schedule.rate);
        series.push(Series { name: "asked for".to_owned(), points, form: Form::Dashes });
    }
    if !failed.is_empty() {
        series.push(Series { name: "failures".to_owned(), points: failed, form: Form::Marks });
    }
    Chart {
        title: "Throughput".to_owned(),
        caption: format!("Messages accepted a second, counted every {seconds} s."),
        x: course_axis(report),
        y: Axis { label: "messages/s", scale: Scale::Linear, unit: Unit::PerSecond, range: None },
        series,
        bands: warm_up(report),
    }
}

fn latency_course(report: &Report) -> Chart {
    // A point without messages has no latency: a gap, not a zero.
    let latency = |of: fn(&Point) -> f64| {
        at_middles(report, move |point| if point.max > 0.0 { of(point) } else { f64::NAN })
    };
    let series = |name: &str, of| Series { name: name.to_owned(), points: latency(of), form: Form::Line };
    Chart {
        title: "Latency over time".to_owned(),
        caption: format!(
            "From the end of the content to its 250, of the messages answered within each {} s.",
            report.course.seconds
        ),
        x: course_axis(report),
        y: Axis {
            label: "end-of-data → 250 (logarithmic)",
            scale: Scale::Logarithmic,
            unit: Unit::Microseconds,
            range: None,
        },
        series: vec![
            series("half (p50)", |point| point.p50),
            series("99 of 100 (p99)", |point| point.p99),
            series("longest", |point| point.max),
        ],
        bands: warm_up(report),
    }
}

fn percentiles(report: &Report) -> Chart {
    let phases = [Phase::EndOfData, Phase::Transaction, Phase::Connect, Phase::Tls];
    let latencies = phases.into_iter().filter_map(|phase| Some((phase.name(), report.phase(phase)?)));
    let mut curves: Vec<(&str, &Latency)> = latencies.collect();
    if let Some(schedule) = &report.schedule {
        curves.push(("due → begun", &schedule.lag));
    }
    percentile_chart("Latency by percentile", &curves)
}

/// Latencies against percentiles, any number of them with their names.
pub fn percentile_chart(title: &str, latencies: &[(&str, &Latency)]) -> Chart {
    let series = latencies.iter().map(|(name, latency)| Series {
        name: (*name).to_owned(),
        points: latency.curve.iter().copied().filter(|point| point.0 >= PERCENTILES.0).collect(),
        form: Form::Line,
    });
    Chart {
        title: title.to_owned(),
        caption: "How long it took at most for so many of 100: the further to the right, the rarer. Each line goes as \
                  far as there were messages enough to tell."
            .to_owned(),
        x: Axis {
            label: "percentile",
            scale: Scale::Nines,
            unit: Unit::Percentile,
            range: Some(PERCENTILES),
        },
        y: Axis {
            label: "latency (logarithmic)",
            scale: Scale::Logarithmic,
            unit: Unit::Microseconds,
            range: None,
        },
        series: series.collect(),
        bands: Vec::new(),
    }
}

/// A value for each point of the course, at its middle.
fn at_middles(report: &Report, value: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let middle = |point: &Point| point.at + report.course.seconds / 2.0;
    report.course.points.iter().map(|point| (middle(point), value(point))).collect()
}

fn course_axis(report: &Report) -> Axis {
    let end = report.course.points.last().map_or(1.0, |point| point.at + report.course.seconds);
    Axis { label: "since the load began", scale: Scale::Linear, unit: Unit::Seconds, range: Some((0.0, end)) }
}

fn warm_up(report: &Report) -> Vec<Band> {
    match report.counting_from_seconds {
        0.0 => Vec::new(),
        to => vec![Band { from: 0.0, to, label: "warm-up".to_owned() }],
    }
}

const LATENCY_HEADING: [&str; 10] =
    ["", "count", "min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"];

fn latency_row(name: &str, latency: &Latency) -> Vec<String> {
    let Latency { min, mean, p50, p90, p99, p99_9, p99_99, max, .. } = *latency;
    let times = [min, mean, p50, p90, p99, p99_9, p99_99, max].map(|time| duration(time).to_string());
    [name.to_owned(), grouped(latency.count)].into_iter().chain(times).collect()
}

fn latencies(body: &mut String, report: &Report) {
    if report.phases.is_empty() {
        return;
    }
    let row = |phase: &super::PhaseFigures| {
        let style = if phase.phase == Phase::EndOfData { "strong" } else { "" };
        (style, latency_row(phase.phase.name(), &phase.latency))
    };
    let table = Table { heading: LATENCY_HEADING.to_vec(), rows: report.phases.iter().map(row).collect() };
    let _ = write!(body, "<h2>Latency by phase</h2>{}", table.html());
}

fn schedule(body: &mut String, report: &Report) {
    let Some(schedule) = &report.schedule else {
        return;
    };
    let table = Table {
        heading: LATENCY_HEADING.to_vec(),
        rows: vec![("", latency_row("due → begun", &schedule.lag))],
    };
    let _ = write!(
        body,
        "<h2>Schedule</h2><p class=\"note\">Open loop: {} messages fell due each second, {} were accepted; {} were never \
         begun. A transaction is measured from when it fell due.</p>{}",
        digits(schedule.rate),
        digits(report.rate),
        grouped(schedule.never_begun),
        table.html()
    );
}

fn replies(body: &mut String, report: &Report) {
    if !report.replies.is_empty() {
        let rows = report.replies.iter().map(|reply| {
            let style = if reply.code >= 400 { "bad" } else { "" };
            let command = reply.phase.name().split(" →").next().unwrap_or_default().to_owned();
            let first = reply.first.clone().unwrap_or_default();
            (style, vec![command, reply.code.to_string(), grouped(reply.count), first])
        });
        let table = Table {
            heading: vec!["to", "code", "count", " first of them, if refused"],
            rows: rows.collect(),
        };
        let _ = write!(body, "<h2>Replies</h2>{}", table.html());
    }
    if !report.failures.is_empty() {
        let rows = report.failures.iter().map(|figures| {
            let failed = &figures.failed;
            ("bad", vec![figures.failure.name().to_owned(), grouped(failed.count), failed.first.clone()])
        });
        let table = Table { heading: vec!["", "count", " the first in words"], rows: rows.collect() };
        let _ = write!(body, "<h2>Failures</h2>{}", table.html());
    }
}

fn costs(body: &mut String, report: &Report) {
    let row = |name: &str, cost: &Cost, memory: String, processes: String| {
        let each = cost.cpu_seconds_per_1000.map(|each| format!("{each:.4} s")).unwrap_or_default();
        ("", vec![name.to_owned(), format!("{} s", digits(cost.cpu_seconds)), each, memory, processes])
    };
    let mut rows = Vec::new();
    if let Some(server) = &report.server {
        let memory = memory(server.memory_octets).to_string();
        rows.push(row("server", &server.cost, memory, server.processes.to_string()));
    }
    rows.push(row("harness", &report.load, String::new(), String::new()));
    let table =
        Table { heading: vec!["", "CPU time", "for 1000 messages", "memory, most", "processes"], rows };
    let tls = match (report.tls_full, report.tls_resumed) {
        (0, 0) => String::new(),
        (full, resumed) => {
            format!("; TLS handshakes: {} in full, {} resumed", grouped(full), grouped(resumed))
        }
    };
    let _ = write!(
        body,
        "<h2>Cost</h2><p class=\"note\">{} connections{tls}; {} of content in {} sent and {} received.</p>{}",
        grouped(report.connections),
        octets(report.content_octets as f64),
        octets(report.sent_octets as f64),
        octets(report.received_octets as f64),
        table.html()
    );
}

fn configuration(body: &mut String, report: &Report) {
    let machine = &report.machine;
    let mut facts = vec![(
        "The harness ran on",
        escape(&format!(
            "{}; {} × {}; {} of memory",
            machine.kernel,
            machine.core_count,
            machine.processor,
            memory(machine.memory_octets)
        )),
    )];
    facts.extend(settings(&report.plan).into_iter().map(|(name, value)| (name, escape(&value))));
    if !report.probe.extensions.is_empty() {
        let chips =
            report.probe.extensions.iter().map(|line| format!("<code>{}</code>", escape(&one_line(line))));
        facts.push(("EHLO offers", format!("<div class=\"chips\">{}</div>", chips.collect::<String>())));
    }
    let command: Vec<String> = report.command.iter().map(|word| quoted(word)).collect();
    let _ = write!(
        body,
        "<h2>Configuration</h2><pre>{}</pre><div class=\"scroll\"><table class=\"facts\">",
        escape(&command.join(" "))
    );
    for (name, html) in facts {
        let _ = write!(body, "<tr><td>{name}</td><td>{html}</td></tr>");
    }
    body.push_str("</table></div>");
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&octet);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Course, sample};
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_and_never_done() {
        let page = page(&sample::full());
        assert_eq!(page.matches("<script>").count(), 1);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"));
        assert!(!page.contains("<img") && !page.contains("<b>no</b>"));
        assert!(!page.contains('\u{1b}') && !page.contains('\u{7}'));
    }

    #[test]
    fn a_page_asks_nobody_for_anything() {
        for page in [page(&sample::full()), page(&sample::quiet())] {
            for word in ["http://", "https://", "src=\"", "url(", "@import", "<link"] {
                assert!(!page.contains(word), "{word}");
            }
            assert!(page.contains("default-src 'none'"));
        }
    }

    #[test]
    fn a_page_says_everything_that_a_summary_says() {
        let page = page(&sample::full());
        for words in [
            "32,104",
            "131",
            "321,040",
            "642,080",
            "Read these figures with care",
            "did not keep up",
            "warm-up",
            "451 4.3.0 later",
            "closed by the server",
            "64 in full, 6 resumed",
            "0.0307",
            "48.0",
            "Fast CPU",
            "STARTTLS",
            "PIPELINING",
            "4 KiB",
            "&#39;a b@mx.test&#39;",
            "due → begun",
            "78,945",
        ] {
            assert!(page.contains(words), "{words}");
        }
    }

    #[test]
    fn a_page_stays_small_however_long_the_run() {
        let full = sample::full();
        let points: Vec<Point> = full.course.points.iter().cycle().take(240).cloned().collect();
        let points =
            points.into_iter().enumerate().map(|(n, point)| Point { at: n as f64, failed: 1, ..point });
        let report = Report { course: Course { seconds: 1.0, points: points.collect() }, ..full };
        let size = page(&report).len();
        assert!(size < 200 * 1024, "{size}");
    }

    #[test]
    fn a_run_without_figures_has_a_page() {
        let page = page(&Report { accepted: 0, rate: 0.0, ..sample::quiet() });
        assert_eq!(page.matches("Nothing was measured").count(), 3);
        assert!(!page.contains("NaN"));
    }
}
