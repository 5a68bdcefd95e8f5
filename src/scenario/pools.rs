//! The resource pools of a scenario.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::changes::Action;
use crate::settings::{PoolPatch, ROOT_POOL, pool_tree, shown};

/// Resource pools by their names. The root is among them only if something is set of it.
pub type Pools = BTreeMap<String, PoolPatch>;

/// Whether there is a resource pool of that name.
///
/// # Errors
/// There is none, and which there are.
pub(super) fn check_pool(name: &str, pools: &Pools) -> Result<(), String> {
    if name == ROOT_POOL || pools.contains_key(name) {
        return Ok(());
    }
    let known = pools.keys().map(String::as_str);
    let known: Vec<_> = known.filter(|known| *known != ROOT_POOL).collect();
    let known = [&[ROOT_POOL], &known[..]].concat().join(", ");
    let name = shown(name);
    Err(format!(
        "there is no resource pool `{name}`; allowed: {known}, each but {ROOT_POOL} a table [pool.NAME]"
    ))
}

/// What `pool.NAME.KEY = VALUE` of a change does. `None`: the key is not of this form.
pub(super) fn set(key: &str, value: &str, pools: &Pools) -> Option<Result<Action, String>> {
    let rest = key.strip_prefix("pool.")?;
    // Names of pools may have dots, names of their settings have none.
    let (name, key) = rest.rsplit_once('.')?;
    Some(changed(name, key, value, pools))
}

fn changed(name: &str, key: &str, value: &str, pools: &Pools) -> Result<Action, String> {
    check_pool(name, pools)?;
    let mut patch = PoolPatch::default();
    let wrong = |error: String| format!("resource pool {name}: {error}");
    let key = patch.change(key, value);
    let key = key.map_err(|error| wrong(error.in_full()))?;
    let mut all = pools.clone();
    let own = all.entry(name.to_owned()).or_default();
    *own = patch.over(own);
    pool_tree(&all).map_err(|(_, error)| wrong(error.in_full()))?;
    let text = format!("{key} = {value}");
    Ok(Action::SetPool(name.to_owned(), text, patch))
}

/// The pools as tables of a host's configuration file, so that a change that takes something back leads to what the
/// scenario says.
pub(super) fn configuration(pools: &Pools) -> String {
    let mut text = String::new();
    for (name, patch) in pools {
        let _ = writeln!(text, "[pool.{}]", Value::from(name.as_str()));
        let settings = serde_json::to_value(patch).unwrap_or_default();
        for (key, value) in settings.as_object().into_iter().flatten() {
            // TOML has no null; what has no bounds by default need not be said. The other values are written as in JSON.
            if !value.is_null() {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::ConfigFile;

    fn pools(all: &[(&str, &str)]) -> Pools {
        let read = |(name, words): &(&str, &str)| {
            let patch = PoolPatch::from_words(words.split_whitespace()).expect("valid");
            ((*name).to_owned(), patch)
        };
        all.iter().map(read).collect()
    }

    #[test]
    fn configuration_file_has_the_same_pools() {
        let written = pools(&[
            ("a.1", "parent=b shares=high reservation=16M limit=none"),
            ("b", "shares=7 limit=64M expandable=no"),
            ("root", "scalable-shares=yes"),
        ]);
        let file = ConfigFile::parse(Path::new("host.toml"), &configuration(&written));
        let read = file
            .unwrap_or_else(|error| panic!("{error}"))
            .pool_patches();
        let tree = |pools: &Pools| pool_tree(pools).expect("a tree");
        assert_eq!(tree(&read), tree(&written));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn changes_are_of_pools_that_there_are_and_keep_them_a_tree() {
        let pools = pools(&[("a.1", "parent=b"), ("b", "limit=64M")]);
        let set = |key, value| set(key, value, &pools);
        let right = set("pool.a.1.limit", "-1")
            .expect("of a pool")
            .expect("right");
        assert_eq!(right.to_string(), "resource pool a.1: limit = -1");
        assert!(
            set("pool.root.scalable-shares", "yes")
                .expect("of a pool")
                .is_ok()
        );
        for (key, value, parts) in [
            ("pool.c.limit", "1M", ["`c`", "root, a.1, b"]),
            ("pool.b.limits", "1M", ["b: ", "limit"]),
            ("pool.b.limit", "1Q", ["`1Q`", "unlimited"]),
            ("pool.b.parent", "a.1", ["b: ", "circle"]),
            ("pool.root.limit", "1M", ["root: ", "scalable-shares"]),
            ("pool.b.reservation", "65M", ["65.0 MiB", "64.0 MiB"]),
        ] {
            let error = set(key, value).expect("of a pool").expect_err(key);
            for part in parts {
                assert!(error.contains(part), "no `{part}` in {error}");
            }
        }
        assert!(set("Mem.IdleTax", "1").is_none());
    }
}
