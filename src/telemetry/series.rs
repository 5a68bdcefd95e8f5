//! The numbers of the status, one by one: what a recording keeps, a chart draws and an expectation names.
//!
//! If each of these chose its own fields and units, a report and the metrics of the same host could disagree. So a series
//! is one field of the table behind [`super::metrics`], under the name and in the unit that it has there.

use serde_json::Value;

use super::metrics::{self, Fields, Kind, Metric};

/// One number of the host or of a VM over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Series {
    metric: &'static Metric,
    path: &'static str,
}

impl Series {
    /// All of the host, in the order of docs/metrics.md.
    pub fn of_host() -> impl Iterator<Item = Self> {
        let of_pool = |series: &Self| series.path.starts_with(metrics::OF_POOL);
        Self::all().filter(move |series| !series.is_of_vm() && !of_pool(series))
    }

    /// All that each VM has.
    pub fn of_vm() -> impl Iterator<Item = Self> {
        Self::all().filter(|series| series.is_of_vm())
    }

    fn all() -> impl Iterator<Item = Self> {
        let numbers = metrics::TABLE
            .iter()
            .filter(|metric| metric.kind != Kind::Info);
        numbers.flat_map(|metric| {
            let paths = metric.fields.paths().iter();
            paths.map(move |path| Self { metric, path })
        })
    }

    fn is_of_vm(&self) -> bool {
        self.path.starts_with(metrics::OF_VM)
    }

    /// Its name as it stands in the metrics, without the label `vm`: `memvisor_vm_memory_bytes{home="resident"}`.
    #[must_use]
    pub fn name(&self) -> String {
        let sample = self.metric.sample();
        match self.metric.fields {
            Fields::Of(_) => sample,
            Fields::By(label, _) => {
                format!("{sample}{{{label}=\"{}\"}}", metrics::label_of(self.path))
            }
        }
    }

    /// What it counts in: `bytes`, `seconds`, `ratio`, `pages`, or empty for things.
    #[must_use]
    pub const fn unit(&self) -> &'static str {
        self.metric.unit.name()
    }

    /// Whether it only grows while its VM lives. Its rate is what people look at.
    #[must_use]
    pub fn is_counter(&self) -> bool {
        self.metric.kind == Kind::Counter
    }

    /// What it means, as a sentence.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        self.metric.help
    }

    /// The words whose positions its values are: of `memvisor_host_state`, 0 is `high`. Empty for what is a number.
    #[must_use]
    pub const fn words(&self) -> &'static [&'static str] {
        match self.metric.kind {
            Kind::StateSet(words) => words,
            Kind::Info | Kind::Counter | Kind::Gauge => &[],
        }
    }

    /// Its value in `of`, which is a [`super::HostStatus`] or a [`super::VmStatus`] as JSON; `None` where the status has none.
    #[must_use]
    pub fn read(&self, of: &Value) -> Option<f64> {
        let field = metrics::find(of, self.path);
        match self.metric.kind {
            Kind::StateSet(words) => {
                let index = words.iter().position(|word| field == word)?;
                u32::try_from(index).ok().map(f64::from)
            }
            Kind::Info => None,
            Kind::Counter | Kind::Gauge => self.metric.unit.convert(field)?.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::fixture;
    use super::*;

    fn value(mut series: impl Iterator<Item = Series>, name: &str, of: &Value) -> Option<f64> {
        let series = series.find(|series| series.name() == name);
        series.unwrap_or_else(|| panic!("{name}")).read(of)
    }

    #[test]
    fn values_are_those_of_the_metrics() {
        let status = serde_json::to_value(fixture::host()).expect("plain data");
        let host = |name| value(Series::of_host(), name, &status);
        assert_eq!(host("memvisor_host_budget_bytes"), Some(268_435_456.0));
        assert_eq!(host("memvisor_host_state"), Some(2.0), "soft");
        assert_eq!(host("memvisor_host_vms"), Some(2.0));
        let web = |name| value(Series::of_vm(), name, &status["vms"][0]);
        let resident = "memvisor_vm_memory_bytes{home=\"resident\"}";
        assert_eq!(web(resident), Some(73_400_320.0));
        let blocked = "memvisor_vm_stall_seconds_total{cause=\"blocked\"}";
        assert_eq!(web(blocked), Some(2.5));
        assert_eq!(web("memvisor_vm_limit_bytes"), None, "there is no limit");
    }

    #[test]
    fn each_series_has_its_own_name_and_stands_in_the_metrics_under_it() {
        let text = metrics::openmetrics(&fixture::host()).replace("vm=\"web\",", "");
        let text = text.replace("{vm=\"web\"}", "");
        let status = serde_json::to_value(fixture::host()).expect("plain data");
        let mut names = BTreeSet::new();
        for (series, of) in Series::of_host()
            .map(|series| (series, &status))
            .chain(Series::of_vm().map(|series| (series, &status["vms"][0])))
        {
            let name = series.name();
            let value = series.read(of);
            if let Some(value) = value.filter(|_| series.words().is_empty()) {
                let line = format!("{name} {value}");
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
            assert!(names.insert(name), "{series:?}");
        }
    }
}
