//! Standard output, which only this module writes to: tables for people, JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};

/// How a command's result is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Style {
    /// For people
    #[default]
    Text,
    /// For programs: one stable JSON document
    Json,
}

/// The option of commands that have a result to show.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct OutputArgs {
    /// How to show the result
    #[arg(short, long, value_enum, default_value_t)]
    output: Style,
}

impl OutputArgs {
    pub(super) fn is_json(self) -> bool {
        self.output == Style::Json
    }
}

/// One line.
pub(super) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// A JSON document, indented for a person who looks at it after all.
pub(super) fn json(value: &serde_json::Value) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Rows under a heading.
pub(super) fn table(heading: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    line(render(heading, rows, io::stdout().is_terminal()))
}

/// Columns apart by spaces. On a terminal long cells wrap to its width; elsewhere each row is one
/// line, for other tools to pick apart.
fn render(heading: &[&str], rows: Vec<Vec<String>>, terminal: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(if terminal {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header(heading.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_one_line_for_each_row_and_no_trailing_space() {
        let rows = vec![
            vec!["orders".to_owned(), "3".to_owned()],
            vec!["o".to_owned(), "12".to_owned()],
        ];
        assert_eq!(
            render(&["topic", "partitions"], rows, false),
            "TOPIC   PARTITIONS\norders  3\no       12"
        );
    }
}
