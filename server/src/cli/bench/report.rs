//! Figures as lines for people or as one document for programs.

use serde::Serialize;
use serde_json::json;

use crate::cli::output;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    name: String,
    backend: Option<&'static str>,
    value: f64,
    unit: &'static str,
    baseline: Option<Baseline>,
    ratio: Option<f64>,
    target: Option<String>,
    met: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Baseline {
    what: &'static str,
    value: f64,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            backend: None,
            value,
            unit,
            baseline: None,
            ratio: None,
            target: None,
            met: None,
            notes: Vec::new(),
        }
    }

    pub(super) fn on(mut self, backend: &'static str) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Measured in the same run, in the same unit.
    pub(super) fn beside(mut self, what: &'static str, value: f64) -> Self {
        self.ratio = (value > 0.0).then(|| self.value / value);
        self.baseline = Some(Baseline { what, value });
        self
    }

    /// The ratio to its baseline should be at least this.
    pub(super) fn at_least_share(mut self, share: f64) -> Self {
        self.target = Some(format!(">= {:.0} %", share * 100.0));
        self.met = Some(self.ratio.is_some_and(|ratio| ratio >= share));
        self
    }

    pub(super) fn at_least(mut self, least: f64) -> Self {
        self.target = Some(format!(">= {}", short(least)));
        self.met = Some(self.value >= least);
        self
    }

    pub(super) fn at_most(mut self, most: f64) -> Self {
        self.target = Some(format!("<= {}", short(most)));
        self.met = Some(self.value <= most);
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    fn row(&self) -> String {
        let name = match self.backend {
            Some(backend) => format!("{} ({backend})", self.name),
            None => self.name.clone(),
        };
        let mut row = format!("{name:<44} {:>10} {:<9}", short(self.value), self.unit);
        if let (Some(baseline), Some(ratio)) = (&self.baseline, self.ratio) {
            let share = format!("{:.0} % of {}", ratio * 100.0, short(baseline.value));
            row = format!("{row} {share:>18} {}", baseline.what);
        }
        if let (Some(target), Some(met)) = (&self.target, self.met) {
            let verdict = if met { "met" } else { "MISSED" };
            row = format!("{row}  [{target}: {verdict}]");
        }
        for note in &self.notes {
            row = format!("{row}\n      {note}");
        }
        row
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 0.1 || magnitude == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// All figures of a run.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    figures: Vec<Figure>,
}

impl Report {
    pub(super) fn begin(json: bool) -> Self {
        Self {
            json,
            figures: Vec::new(),
        }
    }

    /// Takes a figure, and shows it at once to people.
    pub(super) fn add(&mut self, figure: Figure) -> anyhow::Result<()> {
        if !self.json {
            output::line(figure.row())?;
        }
        self.figures.push(figure);
        Ok(())
    }

    pub(super) fn end(&self) -> anyhow::Result<()> {
        if self.json {
            let document = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "debug_build": cfg!(debug_assertions),
                "processors": std::thread::available_parallelism().map_or(0, usize::from),
                "figures": self.figures,
            });
            return Ok(output::json(&document)?);
        }
        let judged = self.figures.iter().filter_map(|figure| figure.met);
        let (met, all) = judged.fold((0, 0), |(met, all), this| (met + u32::from(this), all + 1));
        Ok(output::line(format_args!(
            "\n{met} of {all} targets are met"
        ))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_shown_with_its_baseline_and_its_target() {
        let figure = Figure::new("wal", 900.0, "MB/s")
            .on("threads")
            .beside("raw write", 1000.0)
            .at_least_share(0.85);
        let row = figure.row();
        assert!(row.contains("wal (threads)"), "{row}");
        assert!(
            row.contains("90 % of 1000 raw write  [>= 85 %: met]"),
            "{row}"
        );
        let missed = Figure::new("idle", 7.0, "%").at_most(5.0).row();
        assert!(missed.ends_with("[<= 5.00: MISSED]"), "{missed}");
    }

    #[test]
    fn numbers_keep_the_digits_that_matter() {
        for (value, expected) in [
            (12_345.6, "12346"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.012_34, "0.0123"),
            (0.0, "0.00"),
        ] {
            assert_eq!(short(value), expected);
        }
    }
}
