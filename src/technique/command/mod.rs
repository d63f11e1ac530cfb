//! Any executable: once a scan, or `plan`, `item` and `finish`.
//!
//! Contract
//! - Programs are started from argument arrays, never through a shell; see `template`, `process`.
//! - What a program writes goes to a folder of its own attempt, `parts/<label>.a<attempt>/` (`folders`), and is taken over when
//!   it has ended (`output`); its standard output and error go to `logs/`, bounded.
//! - Programs get the scan's own path. That they leave it alone cannot be enforced; executors compare every input with
//!   its stamps before and after, and discard the result when it changed.
//!
//! | task | load | compute | store |
//! | --- | --- | --- | --- |
//! | plan | runs `plan` | | |
//! | `preview`, `run`, `item-<n>` | – | runs the program | takes its files over |
//! | `finish` | – | runs `finish`, if there is one | puts the bundle together |

mod assemble;
mod capture;
mod folders;
mod items;
mod modules;
mod output;
mod process;
pub mod recipe;
mod spawn;
mod start;
mod template;
#[cfg(test)]
mod tests;
mod tree;

use crate::technique::{
    Fault, Inspection, Payload, Plan, RecipeError, Stage, TaskContext, TaskKind, TaskOutput, TaskSpec, Technique,
    Timings,
};
use recipe::{Program, Recipe};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// Any executable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Command;

/// What a task means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Work {
    Preview,
    Run,
    Item { index: usize, item: String },
    Finish,
}

impl Work {
    fn spec(&self, label: &str, kind: TaskKind, cost: f64, bytes_in: u64) -> Result<TaskSpec, Fault> {
        let params = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|e| Fault::Task(format!("a task cannot be described: {e}")))?;
        Ok(TaskSpec { label: label.to_owned(), kind, params, cost, bytes_in })
    }

    fn of(ctx: &TaskContext) -> Result<Self, Fault> {
        bincode::serde::decode_from_slice(&ctx.task.params, bincode::config::standard())
            .map(|(work, _)| work)
            .map_err(|e| Fault::Task(format!("a task's description cannot be read: {e}")))
    }

    fn program(&self) -> Program {
        match self {
            Self::Preview => Program::Preview,
            Self::Run => Program::Run,
            Self::Item { .. } => Program::Item,
            Self::Finish => Program::Finish,
        }
    }
}

/// What a program left, on its way to `store`.
struct Ran {
    ended: Option<start::Left>,
    compute_s: f64,
}

fn recipe(ctx: &TaskContext) -> Result<Recipe, Fault> {
    serde_json::from_str(&ctx.job.recipe).map_err(|e| Fault::Task(format!("the job's recipe cannot be read: {e}")))
}

impl Technique for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn recipe(&self, table: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        self.recipe_at(table, Path::new("/"))
    }

    /// The programs' own limit comes first; beyond it the executor itself must hang.
    fn task_limit_s(&self, recipe: &serde_json::Value) -> f64 {
        let own = recipe.get("time_limit_s").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        (own * 1.1 + 60.0).max(crate::technique::JobContext::TASK_LIMIT_S)
    }

    /// It waits for programs, and hashes with threads of its own.
    fn uses_pool(&self) -> bool {
        false
    }

    fn recipe_at(&self, table: &toml::Table, base: &Path) -> Result<serde_json::Value, RecipeError> {
        let recipe = Recipe::parse(table, base)?;
        serde_json::to_value(recipe).map_err(|e| RecipeError {
            key: "recipe".to_owned(),
            problem: e.to_string(),
            remedy: "write finite numbers".to_owned(),
        })
    }

    fn executing_keys(&self) -> &'static [&'static str] {
        &recipe::EXECUTING
    }

    fn roles(&self) -> &'static [&'static str] {
        &template::ROLES
    }

    fn inspect(&self, ctx: &TaskContext) -> Result<Inspection, Fault> {
        let scan = &ctx.job.scan;
        Ok(Inspection { summary: format!("{} files, {} bytes", scan.members.len(), scan.bytes()) })
    }

    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let recipe = recipe(ctx)?;
        let bytes = ctx.job.scan.bytes();
        let (tasks, name) = if recipe.plan.is_empty() {
            (vec![Work::Run.spec("run", TaskKind::Stage, 1.0, bytes)?], "run")
        } else {
            let items = items::parse(&start::plan(ctx, &recipe)?, recipe.max_items)?;
            let share = bytes / items.len().max(1) as u64;
            let spec = |(index, item): (usize, items::Item)| {
                let cost = item.cost;
                let work = Work::Item { index, item: item.item };
                work.spec(&format!("item-{index:05}"), TaskKind::Stage, cost, share)
            };
            (items.into_iter().enumerate().map(spec).collect::<Result<_, _>>()?, "items")
        };
        let preview = if recipe.preview.is_empty() {
            None
        } else {
            Some(Work::Preview.spec("preview", TaskKind::Preview, 1.0, bytes)?)
        };
        Ok(Plan {
            preview,
            items: tasks.len() as u64,
            unit: recipe.unit,
            linked: Vec::new(),
            scratch: false,
            stages: vec![Stage { name: name.to_owned(), tasks, decide: None }],
            finish: Work::Finish.spec("finish", TaskKind::Finish, 1.0, 0)?,
        })
    }

    fn load(&self, _: &TaskContext) -> Result<Payload, Fault> {
        Ok(Box::new(()))
    }

    fn compute(&self, ctx: &TaskContext, _: Payload) -> Result<Payload, Fault> {
        let begin = Instant::now();
        let work = Work::of(ctx)?;
        let recipe = recipe(ctx)?;
        let ended = if recipe.template(work.program()).is_empty() {
            None
        } else {
            let items = if work == Work::Finish { Some(assemble::view(ctx)?) } else { None };
            let item = if let Work::Item { index, item } = &work { Some((*index, item.as_str())) } else { None };
            Some(start::run(ctx, &recipe, work.program(), item, items.as_deref())?)
        };
        Ok(Box::new(Ran { ended, compute_s: begin.elapsed().as_secs_f64() }))
    }

    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let begin = Instant::now();
        let ran = computed
            .downcast::<Ran>()
            .map_err(|_| Fault::Task("a task was given another technique's data".to_owned()))?;
        let Ran { ended, compute_s } = *ran;
        let finished = ended.as_ref().map(|left| left.folder.relative.clone());
        let mut files = match ended {
            Some(left) => left.take(ctx)?,
            None => Vec::new(),
        };
        let mut carry = String::new();
        if ctx.task.kind == TaskKind::Finish {
            (files, carry) = assemble::bundle(ctx, finished.map(|folder| (folder, files)))?;
        }
        let timings = Timings { read_s: 0.0, compute_s, write_s: begin.elapsed().as_secs_f64() };
        Ok(TaskOutput { files, carry, timings, ..TaskOutput::default() })
    }
}
