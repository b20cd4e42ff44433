//! What the nodes say of themselves on `/metrics`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::dev;

const TIMEOUT: Duration = Duration::from_secs(5);

/// One node's metrics, as text.
#[derive(Clone, Debug)]
pub(super) struct Scrape(String);

impl Scrape {
    pub(super) async fn of(address: SocketAddr) -> anyhow::Result<Self> {
        let page = dev::get(address, "/metrics", TIMEOUT)
            .await
            .with_context(|| format!("http://{address}/metrics"))?;
        if page.status != 200 {
            bail!("http://{address}/metrics answers {}", page.status);
        }
        let scrape = Self(page.body);
        if scrape.sum("trilog_build_info").is_none() {
            bail!("http://{address}/metrics does not say what was built");
        }
        Ok(scrape)
    }

    /// How many series there are.
    pub(super) fn series(&self) -> usize {
        let lines = self.0.lines();
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .count()
    }

    /// The sum over all labels; nothing if there is no such metric.
    pub(super) fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, "")
    }

    /// The sum over all that have this label; zero if there is none.
    pub(super) fn sum_of(&self, name: &str, label: &str, value: &str) -> f64 {
        let label = format!("{label}=\"{value}\"");
        self.sum_where(name, &label).unwrap_or_default()
    }

    fn sum_where(&self, name: &str, label: &str) -> Option<f64> {
        let mut sum = None;
        for line in self.0.lines().filter(|line| line.contains(label)) {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            if !rest.starts_with(['{', ' ']) {
                continue;
            }
            if let Some(value) = rest
                .rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok())
            {
                sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
        sum
    }

    /// A value for a table; a dash where the node has no such metric.
    pub(super) fn show(&self, name: &str, form: fn(f64) -> String) -> String {
        self.sum(name).map_or_else(|| "-".to_owned(), form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_over_labels_of_the_same_name_only() {
        let scrape = Scrape(
            "# HELP a_total A.\n# TYPE a_total counter\na_total{node=\"1\",topic=\"x y\"} 3\n\
             a_total{node=\"1\",topic=\"z\"} 4\na_total_more 9\nb 0.5\n"
                .to_owned(),
        );
        assert_eq!(scrape.sum("a_total"), Some(7.0));
        assert_eq!(scrape.sum("b"), Some(0.5));
        assert_eq!(scrape.sum("a"), None);
        assert_eq!(
            scrape.sum_of("a_total", "topic", "z").to_bits(),
            4.0_f64.to_bits()
        );
        assert_eq!(
            scrape.sum_of("a_total", "topic", "w").to_bits(),
            0.0_f64.to_bits()
        );
        assert_eq!(scrape.series(), 4);
        assert_eq!(scrape.show("c", |value| format!("{value}")), "-");
    }
}
