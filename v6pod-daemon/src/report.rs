//! Errors for people and logs. No error of this crate repeats its cause in its own text, so that
//! [`chain`] says everything once.

use std::error::Error;

/// The error and its causes in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
