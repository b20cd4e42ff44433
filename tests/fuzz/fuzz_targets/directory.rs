//! Drives `trilog_tests::fuzz::directory`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilog_tests::fuzz::directory(bytes));
