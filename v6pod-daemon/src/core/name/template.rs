//! `registry.name`: what the operator makes of containers' names.

use std::str::FromStr;

use v6pod_proto::Uid;

use super::Label;

/// A label with `{name}` in it, and `{owner}` and `{host}` if these are to be told apart by the name.
///
/// It is filled whoever chose the name, an annotation included: what the operator says of names is not
/// for containers to leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Name,
    Owner,
    Host,
    Text(Box<str>),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name made of \"{{name}}\", {{owner}}, {{host}}, a-z, 0-9 and '-'")]
pub struct TemplateError(String);

/// Who is named, as far as templates ask.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The owner's login name, if he has one.
    pub user: Option<&'a str>,
    /// The owner.
    pub owner: Uid,
    /// The host's name; what stands before its first dot counts.
    pub host: &'a str,
}

impl Template {
    /// The label of a container of this name. Of a long one so much is cut that the rest stays whole: two
    /// owners must not become one by it. `None` if nothing of the name can stand in a label.
    pub fn fill(&self, name: &str, of: Named<'_>) -> Option<Label> {
        let name = Label::from_name(name)?;
        let owner = of.user.map_or_else(|| of.owner.to_string(), str::to_owned);
        let host = of.host.split('.').next().unwrap_or_default();
        let with = |name: &str| -> String {
            let text = |part: &Part| match part {
                Part::Name => name.to_owned(),
                Part::Owner => plain(&owner),
                Part::Host => plain(host),
                Part::Text(text) => text.to_string(),
            };
            self.0.iter().map(text).collect()
        };
        let names = self.0.iter().filter(|part| **part == Part::Name).count().max(1);
        let room = Label::MAX.saturating_sub(with("").len()) / names;
        let cut = name.as_str().get(..room).unwrap_or(name.as_str()).trim_end_matches('-');
        Label::from_name(&with(cut))
    }
}

/// As it can stand within a label.
fn plain(text: &str) -> String {
    Label::from_name(text).map_or_else(String::new, |label| label.to_string())
}

impl Default for Template {
    fn default() -> Self {
        Self(vec![Part::Name])
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let placeholders =
            [("{name}", Part::Name), ("{owner}", Part::Owner), ("{host}", Part::Host)];
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let found = placeholders
                .iter()
                .find_map(|(word, part)| Some((rest.strip_prefix(word)?, part.clone())));
            let (behind, part) = found.unwrap_or_else(|| {
                let end =
                    rest.get(1..).and_then(|rest| rest.find('{')).map_or(rest.len(), |at| at + 1);
                let (text, behind) = rest.split_at(end);
                (behind, Part::Text(text.into()))
            });
            parts.push(part);
            rest = behind;
        }
        let named = parts.contains(&Part::Name);
        // With the shortest of everything it has to be a label already.
        let filled: String =
            parts.iter().map(|part| if let Part::Text(text) = part { text } else { "x" }).collect();
        let whole = filled.parse::<Label>().is_ok();
        if named && whole { Ok(Self(parts)) } else { Err(TemplateError(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Named<'_> =
        Named { user: Some("Al.ice"), owner: Uid::new(1000).unwrap(), host: "Host_1.example" };

    fn filled(template: &str, name: &str) -> Option<String> {
        template.parse::<Template>().unwrap().fill(name, OF).map(|label| label.to_string())
    }

    #[test]
    fn a_template_is_filled_as_a_label() {
        assert_eq!(filled("{name}", "My_Web").as_deref(), Some("my-web"));
        assert_eq!(filled("{name}-{owner}-{host}", "web").as_deref(), Some("web-al-ice-host-1"));
        assert_eq!(filled("c-{host}-{name}", "web").as_deref(), Some("c-host-1-web"));
        assert_eq!(filled("{name}", "___"), None);
        let nobody = Named { user: None, ..OF };
        let template: Template = "{name}-{owner}".parse().unwrap();
        assert_eq!(template.fill("web", nobody).unwrap().as_str(), "web-1000");
    }

    #[test]
    fn attack_21_a_long_name_does_not_push_the_owner_out() {
        let long = filled("{name}-{owner}", &"a".repeat(200)).unwrap();
        assert_eq!(long.len(), Label::MAX);
        assert!(long.ends_with("aa-al-ice"), "{long}");
        assert_eq!(filled("{name}{name}", &"a".repeat(63)).unwrap().len(), 62);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for wrong in [
            "",
            "{owner}",
            "web",
            "{name}.{owner}",
            "-{name}",
            "{name}-",
            "{Name}",
            "{name",
            "é{name}",
        ] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong:?}");
        }
    }
}
