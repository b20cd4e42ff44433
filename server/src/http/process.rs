//! What the operating system says of this process and its disk.

use std::fs;
use std::path::PathBuf;

use super::MetricSource;

/// Publishes processor time, memory, open files, and the free space under the data directory.
/// What cannot be read (another system than Linux) is left out.
#[derive(Clone, Debug)]
pub struct ProcessSource {
    data_dir: PathBuf,
}

impl ProcessSource {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
        }
    }
}

impl MetricSource for ProcessSource {
    fn publish(&self) {
        if let Some(seconds) = cpu_seconds() {
            metrics::gauge!("process_cpu_seconds_total").set(seconds);
        }
        if let Some(bytes) = resident_bytes() {
            metrics::gauge!("process_resident_memory_bytes").set(as_f64(bytes));
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            let count = u64::try_from(descriptors.count()).unwrap_or(u64::MAX);
            metrics::gauge!("process_open_fds").set(as_f64(count));
        }
        if let Ok(space) = rustix::fs::statvfs(&self.data_dir) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            metrics::gauge!("trilog_disk_free_bytes").set(as_f64(free));
        }
    }
}

/// User and system time: fields 14 and 15 of `/proc/self/stat`, in clock ticks.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may hold anything, so count from
    // behind it: the next field is the third.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(as_f64(user + system) / as_f64(rustix::param::clock_ticks_per_second()))
}

/// The second field of `/proc/self/statm`, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

/// A gauge holds a float; beyond 2^53 the last digits are of no interest.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; the last digits of petabytes are of no interest"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}
