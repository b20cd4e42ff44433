//! How consumed records are shown.

use std::io::Write;
use std::str::FromStr;

use serde::Serialize;

/// A record, wherever it came from.
#[derive(Clone, Debug)]
pub(super) struct Shown<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) offset: u64,
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// What to show of each record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Place, time, key and value, for a person: one line.
    Pretty,
    /// The value and a newline.
    Value,
    /// One JSON object on a line.
    Json,
    /// As the template says.
    Template(Vec<Piece>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    TimestampMillis,
    Time,
    Key,
    Value,
    Headers,
}

/// A template that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    #[error(
        "%{0} means nothing: %t topic, %p partition, %o offset, %T milliseconds, %d time, %k key, \
         %s value, %h headers, %% a percent sign"
    )]
    Unknown(char),
    #[error("the template ends after % or \\")]
    Unfinished,
    #[error("{0:?} is neither a format (pretty, value, json) nor a template with % in it")]
    Name(String),
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "value" => Ok(Self::Value),
            "json" => Ok(Self::Json),
            _ if text.contains('%') => Ok(Self::Template(template(text)?)),
            _ => Err(FormatError::Name(text.to_owned())),
        }
    }
}

fn template(text: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let piece = match c {
            '%' => match chars.next().ok_or(FormatError::Unfinished)? {
                '%' => {
                    literal.push(b'%');
                    continue;
                }
                't' => Piece::Topic,
                'p' => Piece::Partition,
                'o' => Piece::Offset,
                'T' => Piece::TimestampMillis,
                'd' => Piece::Time,
                'k' => Piece::Key,
                's' | 'v' => Piece::Value,
                'h' => Piece::Headers,
                other => return Err(FormatError::Unknown(other)),
            },
            '\\' => {
                literal.push(match chars.next().ok_or(FormatError::Unfinished)? {
                    'n' => b'\n',
                    't' => b'\t',
                    'r' => b'\r',
                    '0' => 0,
                    '\\' => b'\\',
                    other => {
                        let mut bytes = [0; 4];
                        literal.push(b'\\');
                        literal.extend_from_slice(other.encode_utf8(&mut bytes).as_bytes());
                        continue;
                    }
                });
                continue;
            }
            other => {
                let mut bytes = [0; 4];
                literal.extend_from_slice(other.encode_utf8(&mut bytes).as_bytes());
                continue;
            }
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

impl Format {
    /// Appends the record to `out`. A null key or value is empty, except in JSON.
    pub(super) fn write(&self, record: &Shown<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Value => {
                out.extend_from_slice(record.value.unwrap_or_default());
                out.push(b'\n');
            }
            Self::Json => {
                // Only text and numbers: it cannot fail.
                let _ = serde_json::to_writer(&mut *out, &JsonRecord::new(record));
                out.push(b'\n');
            }
            Self::Pretty => {
                let _ = write!(
                    out,
                    "{}/{}@{}  ",
                    record.topic, record.partition, record.offset
                );
                out.extend_from_slice(local_time(record.timestamp_ms).as_bytes());
                if let Some(key) = record.key {
                    out.extend_from_slice(b"  ");
                    out.extend_from_slice(key);
                    out.push(b':');
                }
                out.extend_from_slice(b"  ");
                out.extend_from_slice(record.value.unwrap_or(b"(null)"));
                out.push(b'\n');
            }
            Self::Template(pieces) => {
                for piece in pieces {
                    write_piece(piece, record, out);
                }
            }
        }
    }
}

fn write_piece(piece: &Piece, record: &Shown<'_>, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = match piece {
        Piece::Text(text) => out.write_all(text),
        Piece::Topic => out.write_all(record.topic.as_bytes()),
        Piece::Partition => write!(out, "{}", record.partition),
        Piece::Offset => write!(out, "{}", record.offset),
        Piece::TimestampMillis => write!(out, "{}", record.timestamp_ms),
        Piece::Time => out.write_all(local_time(record.timestamp_ms).as_bytes()),
        Piece::Key => out.write_all(record.key.unwrap_or_default()),
        Piece::Value => out.write_all(record.value.unwrap_or_default()),
        Piece::Headers => {
            for (nth, (name, value)) in record.headers.iter().enumerate() {
                if nth > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(name);
                out.push(b'=');
                out.extend_from_slice(value.unwrap_or_default());
            }
            Ok(())
        }
    };
}

/// A record's time in the local zone, to the millisecond.
fn local_time(millis: i64) -> String {
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(time) => {
            let local = time.to_zoned(jiff::tz::TimeZone::system());
            local.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
        }
        Err(_) => format!("{millis}ms"),
    }
}

/// Bytes as JSON: text where they are text, else hexadecimal digits under another name.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum JsonBytes {
    Hex(String),
    #[serde(untagged)]
    Text(String),
}

impl JsonBytes {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(hex(bytes)),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let digit = |nibble: u8| DIGITS[usize::from(nibble & 15)];
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp_ms: i64,
    key: Option<JsonBytes>,
    value: Option<JsonBytes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(JsonBytes, Option<JsonBytes>)>,
}

impl<'a> JsonRecord<'a> {
    fn new(record: &Shown<'a>) -> Self {
        let headers = record.headers.iter();
        Self {
            topic: record.topic,
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(JsonBytes::new),
            value: record.value.map(JsonBytes::new),
            headers: headers
                .map(|(name, value)| (JsonBytes::new(name), value.map(JsonBytes::new)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Shown<'static> {
        Shown {
            topic: "orders",
            partition: 2,
            offset: 41,
            timestamp_ms: 1_700_000_000_123,
            key: Some(b"k"),
            value: Some(b"one \"coffee\""),
            headers: vec![(b"a", Some(b"1")), (b"b", None)],
        }
    }

    fn shown(format: &str, record: &Shown<'_>) -> String {
        let mut out = Vec::new();
        let format: Format = format.parse().unwrap();
        format.write(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn templates_name_the_parts_of_a_record() {
        let record = record();
        for (template, expected) in [
            (r"%t/%p@%o %k=%s\n", "orders/2@41 k=one \"coffee\"\n"),
            ("%T\\t%h", "1700000000123\ta=1,b="),
            (r"100%% \q ü%k", r"100% \q ük"),
            ("value", "one \"coffee\"\n"),
        ] {
            assert_eq!(shown(template, &record), expected, "{template}");
        }
    }

    #[test]
    fn json_is_one_line_and_keeps_null_and_bytes_apart_from_text() {
        let mut record = record();
        assert_eq!(
            shown("json", &record),
            "{\"topic\":\"orders\",\"partition\":2,\"offset\":41,\"timestamp_ms\":1700000000123,\
             \"key\":\"k\",\"value\":\"one \\\"coffee\\\"\",\
             \"headers\":[[\"a\",\"1\"],[\"b\",null]]}\n"
        );
        record.key = None;
        record.value = Some(&[0xff, 0x00]);
        record.headers.clear();
        assert!(shown("json", &record).contains("\"key\":null,\"value\":{\"hex\":\"ff00\"}}"));
    }

    #[test]
    fn what_is_no_format_says_what_would_be() {
        for (text, expected) in [
            ("%x", FormatError::Unknown('x')),
            ("%s %", FormatError::Unfinished),
            ("%s\\", FormatError::Unfinished),
            ("yaml", FormatError::Name("yaml".to_owned())),
        ] {
            assert_eq!(text.parse::<Format>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_time_out_of_range_is_shown_as_it_is() {
        assert_eq!(local_time(i64::MAX), format!("{}ms", i64::MAX));
    }
}
