//! The Python programs of this folder have tests of their own; here they are run, so that whatever
//! runs the tests runs those, too.

#![expect(clippy::print_stdout, reason = "a test says what it cannot do")]

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

#[test]
fn the_comparison_reads_judges_and_reports_as_its_own_tests_say() {
    let mut python = Command::new("python3");
    python
        .args(["-B", "-m", "unittest", "test_compare"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("compare"));
    match python.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: python3 is not installed, tests/compare is not tested");
        }
        ran => {
            let ran = ran.unwrap();
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{said}");
            // None at all would be a success, too.
            assert!(said.contains("\nOK"), "{said}");
            assert!(!said.contains("Ran 0 tests"), "{said}");
        }
    }
}
