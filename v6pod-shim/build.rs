//! Links the unwinder's library, `libgcc_eh`, into the program.
//!
//! The standard library asks for it as `libgcc_s.so`, which the loader would have to find, map and
//! relocate at each start of a container: about 0.14 ms of the shim's 1. Panics abort, so of all of it
//! a backtrace's code is used. Without the static library the program is linked as usual.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let asked = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output();
    let Ok(answer) = asked else { return };
    let answer = String::from_utf8_lossy(&answer.stdout);
    // A compiler that does not have it repeats the name.
    if let Some(folder) = Path::new(answer.trim()).parent().filter(|f| f.is_absolute()) {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}
