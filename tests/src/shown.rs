//! What documents show of a program's output, beside what it prints now.

use crate::IMAGE;

/// What the addresses of the documents' prefix begin with.
const PREFIX: &str = "2001:db8:1:2:3:";

/// What docs/users.md shows behind this beginning of a block, as far as the block goes, with the tests' image.
#[track_caller]
pub fn shown_to_users(begin: &str) -> String {
    let text = include_str!("../../docs/users.md");
    let (_, shown) = text.split_once(&format!("```{begin}")).expect("such a block");
    let (shown, _) = shown.split_once("```").expect("its end");
    shown.replace("IMAGE", IMAGE)
}

/// The first address of a container in a line: one of the documents' prefix, but not the prefix itself.
pub fn shown_address(line: &str) -> Option<&str> {
    let from = line.find(PREFIX)?;
    let rest = &line[from..];
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != ':').unwrap_or(rest.len());
    let found = &rest[..end];
    (!found.ends_with(':')).then_some(found)
}

/// A line without what is another each time: addresses, ids, counts, sizes, times, the ports' names.
pub fn lasting(line: &str) -> String {
    line.split_whitespace().map(lasting_word).collect::<Vec<_>>().join(" ")
}

fn lasting_word(word: &str) -> &str {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let count = bare.trim_end_matches("sec").trim_end_matches('s');
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = |c: char| c.is_ascii_digit() || ".:-".contains(c);
    if shown_address(word).is_some() {
        "ADDRESS"
    } else if [12, 64].contains(&bare.len()) && is_hex(bare) {
        "ID"
    } else if bare.len() == 17 && bare.split(':').all(|part| part.len() == 2 && is_hex(part)) {
        "MAC"
    } else if bare.strip_prefix("v6p").is_some_and(|rest| rest.len() >= 8 && is_hex(rest)) {
        "PORT"
    } else if count.starts_with(|c: char| c.is_ascii_digit()) && count.chars().all(number) {
        "NUMBER"
    } else if ["B", "KiB", "MiB", "GiB"].contains(&bare) {
        "UNIT"
    } else if word == "packet" {
        "packets"
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_each_time_is_left_out_and_nothing_else() {
        let line =
            "web  2001:db8:1:2:3:bb56:3131:8714/128 (7e:6e:84:ea:4c:49) 1.2 MiB in 12 packets";
        assert_eq!(lasting(line), "web ADDRESS MAC NUMBER UNIT in NUMBER packets");
        assert_eq!(lasting("v6p8da1daf516bc . tcp . 80"), "PORT . tcp . NUMBER");
        let plain = "tcp/80 of 2001:db8:2::5 to v6pod0 by 2001:db8:1:2:3::1/128";
        assert_eq!(lasting("open  tcp/80 v6pod0"), "open tcp/80 v6pod0");
        assert_eq!(lasting(plain), "tcp/80 of 2001:db8:2::5 to v6pod0 by ADDRESS");
        assert_eq!(shown_address("prefix 2001:db8:1:2:3::/80"), None);
    }
}
