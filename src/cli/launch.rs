//! `beampilot launch`: what a job script runs.

use super::{Exit, LogFormat, OrExit, Talk};
use crate::launch::left_out::LeftOut;
use crate::launch::supervise::{Asked, shown_end};
use crate::launch::timeline::Sink;
use crate::launch::{Limits, Outcome, Plan, Timeline, supervise};
use crate::site::mpiexec::{Launcher, LauncherError, find};
use crate::site::{Profile, hosts, signals, walltime};
use crate::store::claims::host_name;
use anyhow::{Context, anyhow};
use clap::builder::PossibleValuesParser;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Starts pilots on the nodes of a job, and starts them again when they die.
///
/// Checks the campaign and every node first, leaves bad nodes out, runs mpiexec, and makes sure that nothing of a dead
/// launch is left before the next one starts. Ends when the pilot is done, before the job does, or when starting again
/// does not help. SIGTERM and SIGHUP drain within eight seconds; SIGUSR1 drains at leisure.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot launch campaign.toml
  beampilot launch campaign.toml --dry-run
  beampilot launch campaign.toml --hosts node1,node2 --ranks-per-node 4 --until +50m")]
pub struct Args {
    /// The campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: PathBuf,
    /// Where we are; found out by default.
    #[arg(long, value_name = "SITE")]
    #[arg(value_parser = PossibleValuesParser::new(crate::site::profile::ALL.each_ref().map(|p| p.name)))]
    pub site: Option<String>,
    /// Hosts, instead of the scheduler's.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// A file with one host a line, instead of the scheduler's.
    #[arg(long, value_name = "FILE", conflicts_with = "hosts")]
    pub hostfile: Option<PathBuf>,
    /// Ranks on each node; the default is one for each of its GPUs, or one.
    #[arg(long, value_name = "N")]
    pub ranks_per_node: Option<NonZeroUsize>,
    /// Cores for each rank, where the launcher binds; the default is the site's.
    #[arg(long, value_name = "CORES")]
    pub depth: Option<NonZeroUsize>,
    /// The launcher's executable; the default is BEAMPILOT_MPIEXEC, then the site's.
    #[arg(long, value_name = "PATH")]
    pub mpiexec: Option<PathBuf>,
    /// When this job ends: +30m, or a time such as 2026-11-25T14:00:00Z. Without it the scheduler is asked.
    #[arg(long, alias = "deadline", value_name = "TIME", value_parser = walltime::until_argument)]
    pub until: Option<SystemTime>,
    /// Start nothing this shortly before the end.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = humantime::parse_duration)]
    pub margin: Duration,
    /// Do not start on fewer nodes.
    #[arg(long, value_name = "N", default_value = "1")]
    pub min_nodes: NonZeroUsize,
    /// Process what is there, then end, as `beampilot run --once` does.
    #[arg(long)]
    pub once: bool,
    /// Print what would be run, and run nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print events as JSON, one a line; with --dry-run one document.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args, talk: &Talk) -> anyhow::Result<Exit> {
    // First of all: a wrong campaign must not cost a node a second.
    let (campaign, layout) = if args.dry_run {
        let campaign = super::run::read(&args.campaign)?;
        let layout = crate::store::Layout { state: campaign.state.clone() };
        (campaign, layout)
    } else {
        super::run::prepare(&args.campaign)?
    };
    let profile = match &args.site {
        Some(name) => Profile::named(name).ok_or_else(|| anyhow!("no site {name}")).or_exit(Exit::Usage)?,
        None => Profile::detect(&|name| std::env::var(name).ok(), &host_name()),
    };
    let all = hosts::find(&args.hosts, args.hostfile.as_deref()).or_exit(Exit::Unavailable)?;
    let per_host = args.ranks_per_node.map_or_else(|| profile.ranks_per_node(), NonZeroUsize::get);
    let ranks = all.len() * per_host;
    if ranks > 1 && !cfg!(feature = "mpi") {
        let why = anyhow!(
            "this beampilot was built without MPI and cannot run {ranks} ranks; use --ranks-per-node 1 on one host"
        );
        return Err(why).or_exit(Exit::Config);
    }
    let alone = ranks == 1 && all.first().is_some_and(|h| hosts::is_here(h));
    let (launcher, mpiexec) = launcher(&args, profile, alone).or_exit(Exit::Unavailable)?;
    let plan = Plan {
        profile,
        launcher,
        mpiexec,
        beampilot: std::env::current_exe().context("where is this executable?")?,
        campaign: std::path::absolute(&args.campaign).unwrap_or_else(|_| args.campaign.clone()),
        run_args: run_args(&args, talk),
        per_host,
        depth: args.depth.map_or(profile.depth, NonZeroUsize::get),
        until: args.until.or_else(walltime::job_end),
        launch: format!("{}-{}-{}", host_name(), crate::launch::timeline::at_ms(SystemTime::now()), std::process::id()),
    };
    super::run::warn_if_past(plan.until);
    let remaining = plan.until.and_then(|end| end.duration_since(SystemTime::now()).ok());
    let queue = std::env::var("PBS_QUEUE").unwrap_or_default();
    if let Some(exceeds) = profile.exceeds(&queue, all.len(), None) {
        tracing::warn!("{exceeds}");
    }
    if args.dry_run {
        return dry_run(&args, &plan, &all);
    }
    // Whoever reads the events may go away; the work goes on.
    let out = args.json.then(|| Box::new(|line: &str| drop(super::print(line))) as Sink);
    let timeline = Timeline::new(&plan.launch, out);
    let words = format!(
        "{} on {} hosts of {}, the job ends: {}",
        campaign.name,
        all.len(),
        profile.name,
        shown_end(plan.until)
    );
    let fields = json!({ "site": profile.name, "hosts": all, "ranks_per_node": per_host,
        "until": plan.until.map(walltime::rfc3339), "remaining_s": remaining.map(|r| r.as_secs()) });
    timeline.tell("launch", &words, fields);
    let asked = Asked::default();
    let ending = signals::ending().into_iter().map(|signal| (signal, &asked.end));
    for (signal, flag) in ending.chain([(signal_hook::consts::SIGUSR1, &asked.drain)]) {
        signal_hook::flag::register(signal, flag.clone()).context("signals cannot be handled")?;
    }
    let gpus = if profile.gpu_variable == Some("CUDA_VISIBLE_DEVICES") { profile.gpus.len().min(per_host) } else { 0 };
    let limits = Limits { min_nodes: args.min_nodes.get(), margin: args.margin, gpus };
    let Outcome { code, .. } = supervise(&plan, &limits, &all, &layout, &timeline, &asked);
    Ok(Exit::ALL.into_iter().find(|e| e.code() == code).unwrap_or(Exit::Failed))
}

/// How ranks are started, and by what.
fn launcher(args: &Args, profile: &Profile, alone: bool) -> Result<(Launcher, PathBuf), LauncherError> {
    let named = args
        .mpiexec
        .clone()
        .or_else(|| std::env::var_os("BEAMPILOT_MPIEXEC").filter(|m| !m.is_empty()).map(PathBuf::from));
    let wanted = named.as_ref().map_or(profile.command.to_owned(), |p| p.display().to_string());
    match (find(&wanted), profile.launcher) {
        // One process needs nobody to start it.
        (_, None) if alone && args.mpiexec.is_none() => Ok((Launcher::Direct, PathBuf::new())),
        (Some(path), Some(launcher)) => Ok((launcher, path)),
        (Some(path), None) => Launcher::ask(&path).map(|launcher| (launcher, path)),
        // On a login node a dry run shows the line all the same.
        (None, Some(launcher)) if args.dry_run => Ok((launcher, PathBuf::from(wanted))),
        (None, _) => Err(LauncherError::Missing(wanted)),
    }
}

fn run_args(args: &Args, talk: &Talk) -> Vec<String> {
    let mut more = Vec::new();
    if args.once {
        more.push("--once".to_owned());
    }
    if talk.quiet {
        more.push("--quiet".to_owned());
    }
    more.extend((0..talk.verbose).map(|_| "--verbose".to_owned()));
    if talk.log_format == LogFormat::Json {
        more.extend(["--log-format".to_owned(), "json".to_owned()]);
    }
    more
}

fn dry_run(args: &Args, plan: &Plan, all: &[String]) -> anyhow::Result<Exit> {
    let line = plan.run(all, 1, 1, &LeftOut::default());
    if args.json {
        super::print_json(&json!({ "site": plan.profile.name, "launcher": plan.launcher, "hosts": all,
            "ranks_per_node": plan.per_host, "ranks": all.len() * plan.per_host, "env": line.env,
            "program": line.program, "args": line.args, "until": plan.until.map(walltime::rfc3339) }))?;
    } else {
        let env: String = line.env.iter().map(|(name, value)| format!("export {name}={value}\n")).collect();
        super::print(&format!(
            "# {}, {} hosts, {} ranks on each; the job ends: {}\n{env}{}\n",
            plan.profile.name,
            all.len(),
            plan.per_host,
            shown_end(plan.until),
            line.shown()
        ))?;
    }
    Ok(Exit::Done)
}
