//! `layoutfs cache`.

use super::args;
use super::context::{Context, print_json};
use super::units::size;
use crate::fetch::Result;

pub fn run(context: &Context, command: &args::Cache) -> Result<()> {
    let cache = context.cache()?;
    match command {
        args::Cache::Path => out!("{}", cache.root().display()),
        args::Cache::Ls => {
            let items = cache.items()?;
            if context.options.json {
                return print_json(&items);
            }
            for item in &items {
                let what = item.name.as_ref().unwrap_or(&item.digest);
                out!("{:>10}  {:?}  {what}", size(item.disk_bytes), item.kind);
            }
            let total = items.iter().map(|i| i.disk_bytes).sum();
            context.say(format_args!("{} in {} items", size(total), items.len()));
        }
        args::Cache::Prune { indexes } => {
            let removed = cache.prune(context.options.cache_limit.unwrap_or(0), *indexes)?;
            if context.options.json {
                return print_json(&removed);
            }
            let freed = removed.iter().map(|i| i.disk_bytes).sum();
            context.say(format_args!("removed {} items, {}", removed.len(), size(freed)));
        }
    }
    Ok(())
}
