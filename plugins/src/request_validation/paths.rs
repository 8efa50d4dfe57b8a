//! Paths with `{parameters}`, found in a tree: a literal segment goes before one with parameters.

use regex::Regex;
use std::collections::HashMap;
use weir_gateway::router::normalize;

/// Templates, each with a value of its own.
pub(super) struct Paths<T> {
    root: Step<T>,
}

struct Step<T> {
    literal: HashMap<String, Step<T>>,
    /// Segments with parameters among other text, by their form.
    mixed: Vec<(Regex, Step<T>)>,
    any: Option<Box<Step<T>>>,
    end: Option<(Vec<String>, T)>,
}

impl<T> Default for Step<T> {
    fn default() -> Self {
        Step { literal: HashMap::new(), mixed: vec![], any: None, end: None }
    }
}

/// Values of parameters as they stand in the path, escapes and all.
pub(super) type Values<'p, 'u> = Vec<(&'p str, &'u str)>;

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Paths { root: Step::default() }
    }
}

impl<T> Paths<T> {
    /// Adds a template such as `/pets/{id}`.
    ///
    /// Errors: what is wrong with it.
    pub fn add(&mut self, template: &str, value: T) -> Result<(), String> {
        let Some(rest) = template.strip_prefix('/') else { return Err("a path begins with `/`".into()) };
        let mut names = Vec::new();
        let mut step = &mut self.root;
        for segment in rest.split('/') {
            step = match form(segment, &mut names)? {
                Form::Literal(text) => step.literal.entry(text).or_default(),
                Form::Any => &mut **step.any.get_or_insert_default(),
                Form::Mixed(regex) => {
                    let at = step.mixed.iter().position(|(known, _)| known.as_str() == regex.as_str()).unwrap_or_else(|| {
                        step.mixed.push((regex, Step::default()));
                        step.mixed.len() - 1
                    });
                    &mut step.mixed[at].1
                }
            };
        }
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)).map(|(_, name)| name) {
            return Err(format!("the parameter `{twice}` stands in the path twice"));
        }
        if step.end.is_some() {
            return Err("another path differs from this one in the names of its parameters only".into());
        }
        step.end = Some((names, value));
        Ok(())
    }

    /// The value of the template that a path (without its query) fits, and what its parameters are.
    pub fn find<'p, 'u>(&'p self, path: &'u str) -> Option<(&'p T, Values<'p, 'u>)> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let mut values = Vec::new();
        let (names, value) = self.root.find(&segments, &mut values)?;
        Some((value, names.iter().map(String::as_str).zip(values).collect()))
    }
}

impl<T> Step<T> {
    fn find<'u>(&self, segments: &[&'u str], values: &mut Vec<&'u str>) -> Option<&(Vec<String>, T)> {
        let [segment, rest @ ..] = segments else { return self.end.as_ref() };
        if let Some(found) = self.literal.get(*segment).and_then(|step| step.find(rest, values)) {
            return Some(found);
        }
        let before = values.len();
        for (regex, step) in &self.mixed {
            if let Some(captures) = regex.captures(segment) {
                values.extend(captures.iter().skip(1).flatten().map(|m| m.as_str()));
                if let Some(found) = step.find(rest, values) {
                    return Some(found);
                }
                values.truncate(before);
            }
        }
        let any = self.any.as_ref().filter(|_| !segment.is_empty())?;
        values.push(segment);
        let found = any.find(rest, values);
        if found.is_none() {
            values.truncate(before);
        }
        found
    }
}

enum Form {
    Literal(String),
    Any,
    Mixed(Regex),
}

fn form(segment: &str, names: &mut Vec<String>) -> Result<Form, String> {
    if !segment.contains(['{', '}']) {
        // Requests are normalized, so templates are too.
        return Ok(Form::Literal(normalize(segment).into_owned()));
    }
    let mut pattern = String::from("^");
    let mut rest = segment;
    let mut pieces = 0;
    while !rest.is_empty() {
        pieces += 1;
        match rest.split_once('{') {
            Some(("", after)) => {
                let (name, after) = after.split_once('}').ok_or("a `{` is not closed")?;
                if name.is_empty() || name.contains('{') {
                    return Err("a parameter of the path has no name".into());
                }
                names.push(name.into());
                pattern.push_str("(.+?)");
                rest = after;
            }
            found => {
                let literal = found.map_or(rest, |(before, _)| before);
                if literal.contains('}') {
                    return Err("a `}` closes nothing".into());
                }
                pattern.push_str(&regex::escape(literal));
                rest = &rest[literal.len()..];
            }
        }
    }
    pattern.push('$');
    match pieces {
        1 => Ok(Form::Any),
        _ => Regex::new(&pattern).map(Form::Mixed).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(paths: &Paths<usize>, path: &str) -> Option<(usize, String)> {
        let (value, values) = paths.find(path)?;
        Some((*value, values.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")))
    }

    fn all(templates: &[&str]) -> Paths<usize> {
        let mut paths = Paths::default();
        for (at, template) in templates.iter().enumerate() {
            paths.add(template, at).unwrap_or_else(|e| panic!("{template}: {e}"));
        }
        paths
    }

    #[test]
    fn literal_segments_go_first_and_a_dead_end_is_left_again() {
        let paths = all(&["/", "/pets", "/pets/{id}", "/pets/mine", "/pets/{id}/toys", "/pets/mine/{toy}", "/f/{name}.{ext}", "/f/{name}", "/a/", "/caf%C3%A9"]);
        for (path, found) in [
            ("/", Some((0, ""))),
            ("/pets", Some((1, ""))),
            ("/pets/7", Some((2, "id=7"))),
            ("/pets/mine", Some((3, ""))),
            ("/pets/mine/toys", Some((5, "toy=toys"))),
            ("/pets/7/toys", Some((4, "id=7"))),
            ("/pets/7/balls", None),
            ("/pets/", None),
            ("/pets//toys", None),
            ("/f/a.b.c", Some((6, "name=a ext=b.c"))),
            ("/f/a", Some((7, "name=a"))),
            ("/a/", Some((8, ""))),
            ("/a", None),
            ("/caf%C3%A9", Some((9, ""))),
            ("pets", None),
        ] {
            assert_eq!(shown(&paths, path), found.map(|(at, text)| (at, text.to_owned())), "{path}");
        }
    }

    #[test]
    fn what_is_no_template_is_named() {
        for (template, message) in [
            ("pets", "begins with `/`"),
            ("/{a", "is not closed"),
            ("/a}", "closes nothing"),
            ("/{}", "has no name"),
            ("/{a}/{a}", "`a` stands in the path twice"),
        ] {
            assert!(Paths::default().add(template, ()).unwrap_err().contains(message), "{template}");
        }
        let mut paths = all(&["/a/{x}"]);
        assert!(paths.add("/a/{y}", 1).unwrap_err().contains("in the names of its parameters only"));
    }

    proptest! {
        #[test]
        fn a_path_made_of_a_template_is_found_with_its_values(segments in prop::collection::vec(("[a-z]{1,4}", any::<bool>(), "[a-z0-9%.]{1,6}"), 1..6)) {
            let template: String = segments.iter().enumerate().map(|(at, (name, is_parameter, _))| if *is_parameter { format!("/{{p{at}}}") } else { format!("/{name}") }).collect();
            let path: String = segments.iter().map(|(name, is_parameter, value)| format!("/{}", if *is_parameter { value } else { name })).collect();
            let paths = all(&[&template]);
            let (_, values) = paths.find(&path).expect("found");
            let wanted: Vec<&str> = segments.iter().filter(|s| s.1).map(|s| s.2.as_str()).collect();
            prop_assert_eq!(values.iter().map(|(_, value)| *value).collect::<Vec<_>>(), wanted);
        }

        #[test]
        fn any_text_is_survived(template in ".{0,30}", path in ".{0,30}") {
            let mut paths = all(&["/a/{x}/b", "/{y}.{z}"]);
            let _ = paths.add(&template, 9);
            let _ = paths.find(&path);
        }
    }
}
