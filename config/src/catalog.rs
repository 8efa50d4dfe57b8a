//! What the loader needs to know of plugins, without knowing plugins.

use crate::env::Env;
use crate::{Diagnostic, Node, Span};
use std::path::PathBuf;

/// The register of plugins, as far as configs are concerned.
pub trait PluginCatalog {
    /// Every name that may stand under `name:`, older names included.
    fn names(&self) -> Vec<String>;
    /// Mistakes in the config of a plugin. `name` is one of [`Self::names`].
    fn check(&self, name: &str, config: &Node) -> Vec<Diagnostic>;
    /// Where a plugin's config says how large bodies may be, in bytes; `None` where it does not.
    fn body_limit(&self, name: &str, config: &Node) -> Option<(u64, Span)> {
        let _ = (name, config);
        None
    }
    /// Files that a plugin's config names, whose contents count like the config's own.
    fn files(&self, name: &str, config: &Node) -> Vec<PathBuf> {
        let _ = (name, config);
        vec![]
    }
    /// The register's own name for a name or an older name; `None` if it is unknown.
    fn canonical(&self, name: &str) -> Option<&'static str>;
}

/// How a configuration is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Unknown plugins are dropped with a warning instead of being errors.
    pub ignore_unknown_plugins: bool,
    /// Where `${NAME}` comes from; by default the environment of the process.
    pub env: Env,
}

impl LoadOptions {
    /// The same options with these variables instead of the process's.
    pub fn with_env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }
}
