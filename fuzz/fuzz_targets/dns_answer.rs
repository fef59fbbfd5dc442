#![no_main]
#![allow(missing_docs, reason = "v6pod_fuzz::dns_answer says what it is")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| v6pod_fuzz::dns_answer(data));
