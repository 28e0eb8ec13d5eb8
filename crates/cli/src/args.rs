//! Arguments that several commands share, and the list of commands.

use crate::{commands, error::Kind, output::Format, session::Purpose};
use bulkhead_core::{AppName, EnvironmentName, ServiceName};
use clap::{Args, Parser, Subcommand, builder::Styles};
use std::{path::PathBuf, str::FromStr};

/// Runs services on machines that listen on nothing but SSH.
///
/// An app is described by `bulkhead.toml`, the fleet by `fleet.toml`, and who
/// must sign what by `policy.json`. `bulkhead init` writes all three.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    version,
    styles = Styles::plain(),
    max_term_width = 100,
    after_long_help = exit_codes(),
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Works as if started in this folder.
    #[arg(short = 'C', long = "directory", value_name = "DIR", global = true, help_heading = "Everywhere")]
    pub directory: Option<PathBuf>,

    /// The app's manifest, if it is not `bulkhead.toml` in this folder.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Everywhere")]
    pub manifest: Option<PathBuf>,

    /// The folder of `fleet.toml` and `policy.json`, if it is neither this folder nor one above.
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "BULKHEAD_FLEET",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub fleet: Option<PathBuf>,

    /// How to print the result.
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        global = true,
        help_heading = "Everywhere",
        help = "How to print the result: `text`, or `json` for programs"
    )]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    Init(commands::init::InitArgs),
    Local(commands::local::LocalArgs),
    Node(commands::node::NodeArgs),
    Build(commands::build::BuildArgs),
    Plan(commands::plan::PlanArgs),
    Deploy(commands::deploy::DeployArgs),
    Promote(commands::promote::PromoteArgs),
    Releases(commands::releases::ReleasesArgs),
    Rollback(commands::rollback::RollbackArgs),
    Ps(commands::ps::PsArgs),
    Logs(commands::logs::LogsArgs),
    Audit(commands::audit::AuditArgs),
    Attack(commands::attack::AttackArgs),
    Start(commands::start::StartArgs),
    Stop(commands::stop::StopArgs),
    Scale(commands::scale::ScaleArgs),
    Restart(commands::restart::RestartArgs),
    Secret(commands::secret::SecretArgs),
    Rm(commands::rm::RmArgs),
    Open(commands::open::OpenArgs),
    Look(commands::look::LookArgs),
    Pool(commands::pool::PoolArgs),
    Policy(commands::policy::PolicyArgs),
    Key(commands::key::KeyArgs),
    Revoke(commands::revoke::RevokeArgs),
    Ci(commands::ci::CiArgs),
    Standing(commands::standing::StandingArgs),
    Order(commands::order::OrderFileArgs),
    Completions(commands::completions::CompletionsArgs),
    #[command(hide = true)]
    GenerateDocs(commands::generate_docs::GenerateDocsArgs),
}

/// `-e ENV`, required.
#[derive(Debug, Clone, Args)]
pub struct Environment {
    /// The environment.
    #[arg(short, long = "env", value_name = "ENV", env = "BULKHEAD_ENV", hide_env_values = true)]
    pub environment: EnvironmentName,
}

/// `-e ENV`, optional.
#[derive(Debug, Clone, Args)]
pub struct MaybeEnvironment {
    /// The environment.
    #[arg(short, long = "env", value_name = "ENV", env = "BULKHEAD_ENV", hide_env_values = true)]
    pub environment: Option<EnvironmentName>,
}

/// `-e ENV`, required where an order is made, and not where a pool's loop is asked.
#[derive(Debug, Clone, Args)]
pub struct EnvironmentOrCount {
    /// The environment.
    #[arg(
        short,
        long = "env",
        value_name = "ENV",
        env = "BULKHEAD_ENV",
        hide_env_values = true,
        required_unless_present = "count"
    )]
    pub environment: Option<EnvironmentName>,
}

/// What every order can be given besides.
#[derive(Debug, Clone, Args)]
pub struct OrderArgs {
    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,

    /// Why, in a line; shown by `bulkhead releases`.
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,

    /// How long to wait for another order of the app that is being carried out, one's own of a command that was
    /// interrupted included.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub wait: std::time::Duration,

    /// Prints how long each step took.
    #[arg(long)]
    pub timings: bool,

    /// Signs with the keys at hand and writes the order to this file instead of sending it, for others to sign
    /// (`bulkhead order sign`) within the hour.
    #[arg(long, value_name = "FILE", conflicts_with = "order")]
    pub draft: Option<PathBuf>,

    /// Sends the order that was drafted in this file, once enough have signed it; what it does must be the same.
    #[arg(long, value_name = "FILE")]
    pub order: Option<PathBuf>,

    /// Goes on with a node that was put back to a snapshot: what it has forgotten counts as used up.
    #[arg(long)]
    pub accept_restored: bool,
}

/// What an order that runs an image may need besides signatures.
#[derive(Debug, Clone, Default, Args)]
pub struct GrantArgs {
    /// A statement that the image is green, as `bulkhead ci mark` writes it; besides those in `.bulkhead/green` beside
    /// `fleet.toml` and those that nodes have.
    #[arg(long, value_name = "FILE")]
    pub green: Vec<PathBuf>,

    /// A standing order, as `bulkhead standing` writes it.
    #[arg(long, value_name = "FILE")]
    pub standing: Option<PathBuf>,

    /// Runs an image that is not green, and says why. Only where the policy allows it, and with as many release keys
    /// as it says; it is loud in `ps`, in `releases` and in the audit log.
    #[arg(long, value_name = "REASON")]
    pub break_glass: Option<String>,
}

impl GrantArgs {
    /// Who must sign such an order.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        if self.break_glass.is_some() { Purpose::BreakGlass } else { Purpose::Run }
    }
}

/// An app, or one service of it: `notes`, `notes/web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppOrService {
    /// The app.
    pub app: AppName,
    /// The service, where one is named.
    pub service: Option<ServiceName>,
}

impl FromStr for AppOrService {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (app, service) = match text.split_once('/') {
            Some((app, service)) => (app, Some(service)),
            None => (text, None),
        };
        let app = app.parse().map_err(|error| format!("{error}"))?;
        let service = service.map(|name| name.parse::<ServiceName>().map_err(|error| error.to_string())).transpose()?;
        Ok(Self { app, service })
    }
}

/// One service of an app: `notes/web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppService {
    /// The app.
    pub app: AppName,
    /// The service.
    pub service: ServiceName,
}

impl FromStr for AppService {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<AppOrService>()? {
            AppOrService { app, service: Some(service) } => Ok(Self { app, service }),
            AppOrService { app, service: None } => Err(format!("name a service too, such as `{app}/web`")),
        }
    }
}

/// `500ms`, `10s`, `2m`.
///
/// # Errors
/// It is none of these.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("`{text}` is not a duration: write `500ms`, `10s` or `2m`, at most one hour");
    let (digits, unit_ms) = if let Some(digits) = text.strip_suffix("ms") {
        (digits, 1)
    } else if let Some(digits) = text.strip_suffix('s') {
        (digits, 1000)
    } else if let Some(digits) = text.strip_suffix('m') {
        (digits, 60_000)
    } else {
        return Err(bad());
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(unit_ms).filter(|ms| *ms <= 3_600_000).map(std::time::Duration::from_millis).ok_or_else(bad)
}

/// The table of exit codes for the help text.
#[must_use]
pub fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n    0  done\n");
    for kind in Kind::ALL {
        text.push_str(&format!("  {:>3}  {}\n", kind.exit_code(), kind.meaning()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn apps_services_and_durations() {
        assert_eq!("notes".parse::<AppOrService>().unwrap().service, None);
        assert_eq!("notes/web".parse::<AppService>().unwrap().service.as_str(), "web");
        for bad in ["notes/", "/web", "notes/web/x", "Notes"] {
            assert!(bad.parse::<AppOrService>().is_err(), "{bad}");
        }
        assert!("notes".parse::<AppService>().is_err());
        assert_eq!(parse_duration("2m").unwrap().as_secs(), 120);
        for bad in ["", "5", "5h", "-1s", "61m", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
