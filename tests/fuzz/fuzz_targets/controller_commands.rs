//! Drives `trilog_tests::fuzz::controller_commands`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilog_tests::fuzz::controller_commands(bytes));
