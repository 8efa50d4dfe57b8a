//! From a file to a [`Document`].

use crate::document::Document;
use crate::node::Kind;
use crate::reader::Context;
use crate::words::{MOST_HINTS, did_you_mean};
use crate::{Diagnostic, Diagnostics, LoadOptions, Node, PluginCatalog, Severity, Source, Span, kong, parse, placeholders, secrets, weir};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What came of loading a file.
#[derive(Debug)]
pub struct Loaded {
    /// The document; `None` if there are errors.
    pub document: Option<Document>,
    /// Everything that was found, in the order of the places.
    pub diagnostics: Diagnostics,
    /// Every file that was read, for watching.
    pub files: Vec<PathBuf>,
    /// Where there are errors: what has none, for checks that go further.
    pub rest: Option<Rest>,
}

/// What is without errors in a configuration that has some. It is never to be served.
#[derive(Debug)]
pub struct Rest {
    /// The document; parts that have errors are missing or without meaning.
    pub document: Document,
    unsound: Vec<Span>,
}

impl Rest {
    /// The findings of a further check that do not follow from errors that are known already.
    pub fn own(&self, found: Vec<Diagnostic>) -> impl Iterator<Item = Diagnostic> {
        found.into_iter().filter(|diagnostic| diagnostic.span.is_known() && !self.unsound.contains(&diagnostic.span))
    }
}

/// Loads a file: Weir's own, or a Kong file as it is, which becomes a gateway on port 8000.
pub fn load_file(path: impl AsRef<Path>, catalog: &dyn PluginCatalog, options: &LoadOptions) -> Loaded {
    let path = path.as_ref();
    let cx = context(catalog, options);
    let document = match read_source(&cx, path) {
        Ok(source) => load(&cx, &source),
        Err(why) => {
            cx.push(Diagnostic::error("file", &Span::default(), format!("{}: {why}", path.display())));
            None
        }
    };
    finish(cx, document)
}

/// Loads a text as if it stood in a file of this name; other files that it names are read relative to that.
pub fn load_str(name: &str, text: &str, catalog: &dyn PluginCatalog, options: &LoadOptions) -> Loaded {
    let cx = context(catalog, options);
    let document = load(&cx, &Source::new(name, text));
    finish(cx, document)
}

/// Loads bytes, which may be no text at all.
pub fn load_bytes(name: &str, bytes: &[u8], catalog: &dyn PluginCatalog, options: &LoadOptions) -> Loaded {
    let cx = context(catalog, options);
    let document = match text_of(name, bytes) {
        Ok(source) => load(&cx, &source),
        Err(diagnostic) => {
            cx.push(*diagnostic);
            None
        }
    };
    finish(cx, document)
}

fn context<'a>(catalog: &'a dyn PluginCatalog, options: &'a LoadOptions) -> Context<'a> {
    Context { catalog, options, found: RefCell::default(), files: RefCell::default(), errors: Cell::default(), unsound: RefCell::default() }
}

fn finish(cx: Context<'_>, document: Option<Document>) -> Loaded {
    let (document, rest) = match document {
        Some(document) if cx.has_errors() => (None, Some(rest(&cx, document))),
        document => (document, None),
    };
    Loaded { document, diagnostics: Diagnostics::new(cx.found.into_inner()), files: cx.files.into_inner(), rest }
}

fn rest(cx: &Context<'_>, mut document: Document) -> Rest {
    let mut unsound = cx.unsound.take();
    if let Some(gateway) = &mut document.gateway {
        gateway.plugins.retain(|plugin| !unsound.contains(&plugin.name_span));
    }
    unsound.extend(cx.found.borrow().iter().filter(|found| found.severity == Severity::Error).map(|found| found.span.clone()));
    Rest { document, unsound }
}

/// Reads a file as text.
pub(crate) fn read_source(cx: &Context<'_>, path: &Path) -> Result<std::sync::Arc<Source>, String> {
    cx.files.borrow_mut().push(path.to_path_buf());
    source_of(path)
}

/// A file as text.
pub(crate) fn source_of(path: &Path) -> Result<std::sync::Arc<Source>, String> {
    let size = std::fs::metadata(path).map_err(|error| plain_error(&error))?;
    if size.is_dir() {
        return Err("this is a folder".into());
    }
    if size.len() > parse::MAX_BYTES as u64 {
        return Err(format!("the file is larger than {} MiB", parse::MAX_BYTES / 1024 / 1024));
    }
    let bytes = std::fs::read(path).map_err(|error| plain_error(&error))?;
    text_of(&path.to_string_lossy(), &bytes).map_err(|diagnostic| match diagnostic.span.line {
        0 => diagnostic.message,
        line => format!("{} (line {line})", diagnostic.message),
    })
}

/// An I/O error without the number of the operating system.
fn plain_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "the file may not be read".into(),
        _ => error.to_string(),
    }
}

fn text_of(name: &str, bytes: &[u8]) -> Result<std::sync::Arc<Source>, Box<Diagnostic>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => {
            // The part before the bad byte is text, and enough to show the place.
            let good = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default()).into_owned();
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
            let hint = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the file is UTF-16: save it as UTF-8",
                _ => "save the file as UTF-8",
            };
            let source = Source::new(name, good);
            let span = Span::new(&source, u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX), 0);
            Err(Box::new(Diagnostic::error("encoding", &span, "this byte is not UTF-8").hint(hint)))
        }
    }
}

/// Parses a source into a tree; what it finds goes to the context.
pub(crate) fn tree(cx: &Context<'_>, source: &std::sync::Arc<Source>) -> Option<Node> {
    let env = cx.options.env.with_vaults(vaults(source));
    let mut found = Vec::new();
    let node = parse::parse(source, Some(&env), &mut found);
    let complete = found.is_empty();
    let line = |start: &str| source.text().lines().any(|line| line.starts_with(start));
    if node.is_none() && line("apiVersion:") && line("kind:") {
        found.iter_mut().filter(|found| found.code == "yaml").for_each(|found| found.hint = Some(OF_KUBERNETES.into()));
    }
    cx.extend(found);
    match node {
        Some(node) if matches!(node.kind(), Kind::Map(_)) => Some(node),
        Some(node) if node.is_null() && complete => {
            empty(cx, source);
            None
        }
        Some(node) => {
            cx.error("type", node.span(), format!("a configuration is a mapping, not {}", node.describe()), None);
            None
        }
        None if complete => {
            empty(cx, source);
            None
        }
        None => None,
    }
}

/// What to do with a file of Kubernetes.
const OF_KUBERNETES: &str = "take the text under its `data:` out into a file of its own";

/// Kong's `vaults` that are environments: their prefixes, and what their variables begin with. References stand anywhere in the file, so
/// this looks before anything is expanded.
fn vaults(source: &std::sync::Arc<Source>) -> HashMap<String, String> {
    if !source.text().contains("vaults") {
        return HashMap::new();
    }
    let node = parse::parse(source, None, &mut Vec::new()).unwrap_or_default();
    let section = node.get("vaults").or_else(|| node.get("gateway")?.get("vaults"));
    let text = |vault: &Node, key: &str| vault.get(key).and_then(Node::text);
    let environments = section.map_or(&[][..], Node::items).iter().filter(|vault| text(vault, "name").as_deref() == Some("env"));
    environments.filter_map(|vault| Some((text(vault, "prefix")?, vault.get("config").and_then(|config| text(config, "prefix")).unwrap_or_default()))).collect()
}

fn empty(cx: &Context<'_>, source: &std::sync::Arc<Source>) {
    let hint = "write an `edge:` or a `gateway:` section, or Kong's `services:`";
    cx.push(Diagnostic::error("empty", &Span::new(source, 1, 1, 0), "the file is empty").hint(hint));
}

fn load(cx: &Context<'_>, source: &std::sync::Arc<Source>) -> Option<Document> {
    let node = tree(cx, source)?;
    secrets::warn(cx, &node);
    placeholders::warn(cx, &node);
    let has = |keys: &[&str]| keys.iter().any(|key| node.key_span(key).is_some());
    let own = has(&weir::SECTIONS);
    let kongs = has(&kong::TOP_KEYS);
    if kongs && !own {
        return weir::bare_kong(cx, &node);
    }
    if kongs {
        for (key, _) in node.entries().iter().filter(|(key, _)| kong::TOP_KEYS.contains(&key.name.as_str())) {
            cx.error("unknown-key", &key.span, format!("`{}` stands beside Weir's own sections", key.name), Some("move it under `gateway:`".into()));
        }
    } else if node.get("apiVersion").is_some() && node.get("kind").is_some() {
        cx.error("unsupported", node.span(), "this is an object of Kubernetes, not a configuration", Some(OF_KUBERNETES.into()));
        return None;
    } else if !own {
        // Not one key is known: say once what kinds of file there are, then name the keys.
        let known = weir::SECTIONS.iter().chain(kong::TOP_KEYS.iter()).copied();
        for (key, _) in node.entries().iter().take(MOST_HINTS) {
            let hint = did_you_mean(&key.name, known.clone());
            cx.error("unknown-key", &key.span, format!("unknown key `{}`", key.name), hint.or_else(|| Some("a file has Weir's sections (edge, gateway, …) or Kong's (services, …)".into())));
        }
        if node.entries().is_empty() {
            empty(cx, source);
        }
        return None;
    }
    weir::read(cx, &node, source)
}
