//! Documents that are made from the program itself.

use std::fmt::Write as _;

use clap::ValueEnum;
use homeserver::{api, config};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Document {
    /// Every endpoint that is registered.
    Endpoints,
    /// Every setting.
    Settings,
    /// The example settings file.
    Example,
}

impl Document {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Endpoints => endpoints(),
            Self::Settings => config::reference(),
            Self::Example => config::example(),
        }
    }
}

/// A line for each operation: section, method, path, who may call it, handler. (`cargo xtask docs` makes a document of it.)
fn endpoints() -> String {
    let mut out = String::new();
    for (title, routes) in
        [("Clients", api::routes()), ("Administration (unix socket)", api::admin()), ("Metrics", api::metrics())]
    {
        for operation in routes.inventory() {
            let handler = operation.handler.trim_start_matches("homeserver::");
            let (method, path, access) = (operation.method, operation.path, operation.access);
            let _ = writeln!(out, "{title}\t{method}\t{path}\t{access}\t{handler}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// To bring them up to date: `UPDATE_DOCS=1 cargo test -p skerry`.
    #[test]
    fn generated_documents_are_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (path, document) in
            [("docs/generated/settings.md", Document::Settings), ("config/skerry.example.toml", Document::Example)]
        {
            let file = root.join(path);
            if std::env::var_os("UPDATE_DOCS").is_some() {
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(&file, document.text()).unwrap();
            }
            let committed = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(committed == document.text(), "{path} is out of date: UPDATE_DOCS=1 cargo test -p skerry");
        }
    }
}
