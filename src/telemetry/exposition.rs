//! Metrics as text, in either of the two formats that scrapers read: OpenMetrics 1.0, and the older text format of Prometheus (0.0.4), for
//! those that do not know it.
//!
//! They differ in what a counter's family is called, in the unit, and in the end mark. Written by hand: what is exposed is gathered from
//! shards when it is asked for, and no crate writes both.

use std::fmt::{self, Write};

use super::distribution::Buckets;
use super::metrics::{Kind, Metric};

/// In which format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    #[default]
    OpenMetrics,
    /// Prometheus text, 0.0.4.
    Text,
}

impl Format {
    /// The one that whoever sends this `Accept` header reads.
    pub fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// What to say of it in `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The text as it grows: one family after the other.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    /// Nothing yet.
    pub fn new(format: Format) -> Self {
        Exposition { format, text: String::with_capacity(16 << 10) }
    }

    /// A family; `samples` writes what it has.
    pub fn family(&mut self, metric: &'static Metric, samples: impl FnOnce(&mut Samples<'_>)) {
        let Exposition { format, text } = self;
        let format = *format;
        let base = match (format, metric.kind) {
            (Format::OpenMetrics, Kind::Counter) => {
                metric.name.strip_suffix("_total").expect("a counter's name ends so")
            }
            _ => metric.name,
        };
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        push(text, format_args!("# TYPE {base} {kind}\n"));
        if let (Format::OpenMetrics, Some(unit)) = (format, metric.unit()) {
            push(text, format_args!("# UNIT {base} {unit}\n"));
        }
        push(text, format_args!("# HELP {base} {}\n", metric.help));
        samples(&mut Samples { metric, text });
    }

    /// A family of one sample without labels.
    pub fn one(&mut self, metric: &'static Metric, value: impl Into<Value>) {
        self.family(metric, |samples| samples.add([], value));
    }

    /// The whole.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Exact.
    Whole(u64),
    /// Or not.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Whole(u64::from(value))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Real(value)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Whole(value) => write!(f, "{value}"),
            Value::Real(value) => write!(f, "{value:?}"),
        }
    }
}

/// The samples of one family.
pub struct Samples<'a> {
    metric: &'static Metric,
    text: &'a mut String,
}

impl Samples<'_> {
    /// One, with a value for each of the metric's labels.
    pub fn add<const N: usize>(&mut self, labels: [&str; N], value: impl Into<Value>) {
        assert!(self.metric.kind != Kind::Histogram, "{}: a histogram has buckets", self.metric.name);
        self.sample("", &labels, None, value.into());
    }

    /// One of a histogram.
    pub fn histogram<const N: usize>(&mut self, labels: [&str; N], buckets: &Buckets) {
        assert!(self.metric.kind == Kind::Histogram, "{}: it is no histogram", self.metric.name);
        for (bound, count) in buckets.cumulative() {
            self.sample("_bucket", &labels, Some(Some(bound)), count.into());
        }
        self.sample("_bucket", &labels, Some(None), buckets.count().into());
        self.sample("_sum", &labels, None, buckets.sum().into());
        self.sample("_count", &labels, None, buckets.count().into());
    }

    /// `bound`: of a bucket; of the last there is none.
    fn sample(&mut self, suffix: &str, labels: &[&str], bound: Option<Option<f64>>, value: Value) {
        assert!(labels.len() == self.metric.labels.len(), "{}: a value for each label", self.metric.name);
        push(self.text, format_args!("{}{suffix}", self.metric.name));
        let mut open = '{';
        for (name, value) in self.metric.labels.iter().zip(labels) {
            push(self.text, format_args!("{open}{name}=\"{}\"", Label(value)));
            open = ',';
        }
        match bound {
            None => {}
            Some(Some(bound)) => push(self.text, format_args!("{open}le=\"{bound:?}\"")),
            Some(None) => push(self.text, format_args!("{open}le=\"+Inf\"")),
        }
        if bound.is_some() || !labels.is_empty() {
            self.text.push('}');
        }
        push(self.text, format_args!(" {value}\n"));
    }
}

fn push(text: &mut String, words: fmt::Arguments<'_>) {
    text.write_fmt(words).expect("a string takes what is written to it");
}

/// A label's value, escaped as both formats want it.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::distribution::{Distribution, Scale};
    use crate::telemetry::metrics;

    fn written(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        exposition.one(&metrics::SESSIONS, 7_u64);
        exposition.family(&metrics::DELIVERIES, |samples| {
            samples.add(["a\"b\\c\nd", "delivered"], 1_u64);
            samples.add(["é", "rejected"], u64::MAX);
        });
        exposition.one(&metrics::CPU, 0.25);
        let wait = Distribution::new(Scale::Seconds);
        wait.record(Duration::from_millis(3));
        exposition
            .family(&metrics::POLICY_WAIT, |samples| samples.histogram(["mail"], &wait.read().buckets()));
        exposition.finish()
    }

    #[test]
    fn open_metrics_names_families_without_total_says_units_and_ends() {
        let text = written(Format::OpenMetrics);
        for line in [
            "# TYPE incoming_sessions counter\n# HELP incoming_sessions Conn",
            "\nincoming_sessions_total 7\n",
            "incoming_deliveries_total{target=\"a\\\"b\\\\c\\nd\",outcome=\"delivered\"} 1\n",
            "incoming_deliveries_total{target=\"é\",outcome=\"rejected\"} 18446744073709551615\n",
            "# TYPE process_cpu_seconds counter\n# UNIT process_cpu_seconds seconds\n",
            "process_cpu_seconds_total 0.25\n",
            "incoming_policy_wait_seconds_bucket{phase=\"mail\",le=\"0.0025\"} 0\n",
            "incoming_policy_wait_seconds_bucket{phase=\"mail\",le=\"0.005\"} 1\n",
            "incoming_policy_wait_seconds_bucket{phase=\"mail\",le=\"+Inf\"} 1\n",
            "incoming_policy_wait_seconds_sum{phase=\"mail\"} 0.003\n",
            "incoming_policy_wait_seconds_count{phase=\"mail\"} 1\n# EOF\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_older_format_has_the_same_samples() {
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_string).collect()
        };
        let text = written(Format::Text);
        assert_eq!(samples(&text), samples(&written(Format::OpenMetrics)));
        assert!(text.contains("# TYPE incoming_sessions_total counter\n"), "{text}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn who_reads_open_metrics_gets_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, format) in [(prometheus, Format::OpenMetrics), ("*/*", Format::Text), ("", Format::Text)]
        {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
