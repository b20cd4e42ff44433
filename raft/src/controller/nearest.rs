//! "Did you mean": the known name nearest to a mistyped one.

/// The edit distance of `a` and `b` in bytes.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The one of `known` nearest to `name`, if it is near enough to have been meant; the first of
/// equals.
#[must_use]
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // No key is anywhere near this long, and the work grows with the length.
    if name.len() > 128 {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-'], ".");
    let wanted = plain(name);
    known
        .into_iter()
        .map(|candidate| {
            (
                distance(wanted.as_bytes(), plain(candidate).as_bytes()),
                candidate,
            )
        })
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_nonsense_is_not_guessed_at() {
        let known = ["retention.ms", "retention.bytes", "segment.bytes"];
        for (typed, meant) in [
            ("retention.m", Some("retention.ms")),
            ("Retention_MS", Some("retention.ms")),
            ("segments.byte", Some("segment.bytes")),
            ("retentoin.bytes", Some("retention.bytes")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
    }

    #[test]
    fn distance_counts_single_edits() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"same", b"same"), 0);
    }
}
