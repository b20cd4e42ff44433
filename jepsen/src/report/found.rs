//! What a report of a run says is wrong, a line each: for scripts, which are to go by reports and not
//! by what was printed for people.

use serde_json::Value;

/// `validity V`, and then `anomaly KIND COUNT` of what is an error, `failure TEXT` of what no history
/// shows, `gap TEXT` of what could not be looked at and `skipped TEXT` of faults that did
/// not come. Nothing if it is no report.
pub fn found(report: &Value) -> Option<Vec<String>> {
    let validity = report.get("validity")?.as_str()?;
    let mut lines = vec![format!("validity {validity}")];
    for (kind, tally) in report.get("verdict")?.get("tally")?.as_object()? {
        let errors = tally.get("errors")?.as_u64()?;
        if errors > 0 {
            lines.push(format!("anomaly {kind} {errors}"));
        }
    }
    for (field, name) in [
        ("failures", "failure"),
        ("gaps", "gap"),
        ("faults_skipped", "skipped"),
    ] {
        for text in report.get(field)?.as_array()? {
            let text = text.as_str()?;
            lines.push(format!("{name} {}", text.replace('\n', " | ")));
        }
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_has_its_line() {
        let mut report = serde_json::json!({
            "validity": "invalid",
            "verdict": {"tally": {
                "G0": {"errors": 0, "allowed": 9},
                "lost-write": {"errors": 2, "allowed": 0},
            }},
            "failures": ["node 1 ended by itself (1):\nat x"],
            "gaps": ["kill did not happen"],
            "faults_skipped": ["delay: no"],
        });
        let lines = [
            "validity invalid",
            "anomaly lost-write 2",
            "failure node 1 ended by itself (1): | at x",
            "gap kill did not happen",
            "skipped delay: no",
        ];
        assert_eq!(found(&report).unwrap(), lines);
        report.as_object_mut().unwrap().remove("gaps");
        assert_eq!(found(&report), None);
    }
}
