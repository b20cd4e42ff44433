//! Drives `trilog_tests::fuzz::kafka_requests`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trilog_tests::fuzz::kafka_requests(bytes));
