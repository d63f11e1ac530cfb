//! Asks every host a question: one small process on each, through the launcher that will start the ranks.
//!
//! Contract
//! - Bounded: every host has answered, or is known not to answer, within twice the limit and a little.
//! - First all remote hosts at once; if that fails as a whole, one by one, so that a dead host is found by name.
//! - This host is asked without a launcher: it must be possible to search it whatever state MPI is in.

use super::plan::{Line, Plan};
use crate::site::{bounded, hosts};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// For one answer; a launcher reaches fifty nodes in about five seconds.
const LIMIT: Duration = Duration::from_secs(15);
/// Launchers that run at once when hosts are asked one by one.
const AT_ONCE: usize = 8;

/// The answer of every host, or why there is none.
pub fn ask<T: DeserializeOwned + Send>(
    plan: &Plan,
    on: &[String],
    args: &[String],
    mpiexecs: &AtomicU32,
) -> BTreeMap<String, Result<T, String>> {
    let (here, far): (Vec<String>, Vec<String>) = on.iter().cloned().partition(|h| hosts::is_here(h));
    let mut answers = BTreeMap::new();
    for host in here {
        answers.insert(host, parse_one(&mut Command::new(&plan.beampilot), args));
    }
    if far.is_empty() {
        return answers;
    }
    let through = |hosts: &[String]| plan.helper(hosts, args.to_vec(), mpiexecs.fetch_add(1, Ordering::Relaxed));
    if far.len() > 1
        && let Some(all) = together(&through(&far), &far)
    {
        answers.extend(all.into_iter().map(|(host, answer)| (host, Ok(answer))));
        return answers;
    }
    let (todo, done) = (Mutex::new(far), Mutex::new(&mut answers));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(host) = pop(&todo) {
                    let answer = through(std::slice::from_ref(&host))
                        .command()
                        .map_err(|e| e.to_string())
                        .and_then(|mut command| parse_one(&mut command, &[]));
                    if let Ok(mut done) = done.lock() {
                        done.insert(host, answer);
                    }
                }
            });
        }
    });
    answers
}

fn pop(todo: &Mutex<Vec<String>>) -> Option<String> {
    todo.lock().ok()?.pop()
}

/// Everybody's answer, or nothing.
fn together<T: DeserializeOwned>(line: &Line, on: &[String]) -> Option<BTreeMap<String, T>> {
    let said = bounded::output(&mut line.command().ok()?, LIMIT).ok().filter(|said| said.status.success())?;
    let mut answers = BTreeMap::new();
    for text in String::from_utf8_lossy(&said.stdout).lines().filter(|l| l.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        let name = value.get("host")?.as_str()?.to_owned();
        let host = on.iter().find(|h| hosts::same(h, &name))?;
        answers.insert(host.clone(), serde_json::from_value(value).ok()?);
    }
    (answers.len() == on.len()).then_some(answers)
}

fn parse_one<T: DeserializeOwned>(command: &mut Command, args: &[String]) -> Result<T, String> {
    // The helper carries no launch id: it would count as a survivor.
    command.args(args).env_remove(super::survivors::VARIABLE);
    let said = bounded::output(command, LIMIT).map_err(|e| e.to_string())?;
    let out = String::from_utf8_lossy(&said.stdout);
    let line = out.lines().find(|l| l.starts_with('{'));
    match line.map(serde_json::from_str) {
        Some(Ok(answer)) => Ok(answer),
        _ => {
            let complaint = String::from_utf8_lossy(&said.stderr);
            let words = complaint.lines().map(str::trim).find(|l| l.chars().any(char::is_alphabetic));
            Err(format!("no answer ({}; {})", said.status, words.unwrap_or("no words")))
        }
    }
}
