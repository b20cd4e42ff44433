//! Progress of long work: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far something is.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

/// Bars would only flicker on work that is over by then.
const REDRAW: u8 = 8;

impl Progress {
    /// Of `total` records; of an unknown number if there is none.
    pub(super) fn records(what: &'static str, total: Option<u64>) -> Self {
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} {bar:30} {human_pos}/{human_len} records  {per_sec}  {eta} left",
            ),
            None => (
                ProgressBar::no_length(),
                "{msg} {spinner} {human_pos} records  {per_sec}",
            ),
        };
        Self::new(bar, what, template)
    }

    /// Of an unknown number of steps.
    pub(super) fn steps(what: &'static str) -> Self {
        Self::new(
            ProgressBar::no_length(),
            what,
            "{msg} {spinner} {human_pos}",
        )
    }

    fn new(bar: ProgressBar, what: &'static str, template: &str) -> Self {
        // On standard error, and only if that is a terminal.
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAW));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    pub(super) fn add(&self, count: u64) {
        self.0.inc(count);
    }

    /// Says something above the bar, or plainly where there is none.
    pub(super) fn note(&self, text: &str) {
        if self.0.is_hidden() {
            eprintln!("{text}");
        } else {
            self.0.println(text);
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
