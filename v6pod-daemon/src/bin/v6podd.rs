//! v6podd.
fn main() {}
