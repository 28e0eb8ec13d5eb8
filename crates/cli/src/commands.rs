//! The commands, one file each.

pub mod attack;
pub mod audit;
pub mod build;
pub mod ci;
pub mod completions;
pub mod deploy;
pub mod generate_docs;
pub mod init;
pub mod key;
pub mod local;
pub mod logs;
pub mod look;
pub mod node;
pub mod open;
pub mod order;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod promote;
pub mod ps;
pub mod releases;
pub mod restart;
pub mod revoke;
pub mod rm;
pub mod rollback;
pub mod scale;
pub mod secret;
pub mod standing;
pub mod start;
pub mod stop;

use crate::{Context, args::Command, error::Result};

/// Runs one.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Init(args) => init::run(context, args).await,
        Command::Local(args) => local::run(context, args).await,
        Command::Node(args) => node::run(context, args).await,
        Command::Build(args) => build::run(context, args).await,
        Command::Plan(args) => plan::run(context, args).await,
        Command::Deploy(args) => deploy::run(context, args).await,
        Command::Promote(args) => promote::run(context, args).await,
        Command::Releases(args) => releases::run(context, args).await,
        Command::Rollback(args) => rollback::run(context, args).await,
        Command::Ps(args) => ps::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Audit(args) => audit::run(context, args).await,
        Command::Attack(args) => attack::run(context, args).await,
        Command::Start(args) => start::run(context, args).await,
        Command::Stop(args) => stop::run(context, args).await,
        Command::Scale(args) => scale::run(context, args).await,
        Command::Restart(args) => restart::run(context, args).await,
        Command::Secret(args) => secret::run(context, args).await,
        Command::Rm(args) => rm::run(context, args).await,
        Command::Open(args) => open::run(context, args).await,
        Command::Look(args) => look::run(context, args).await,
        Command::Pool(args) => pool::run(context, args).await,
        Command::Policy(args) => policy::run(context, args).await,
        Command::Key(args) => key::run(context, args).await,
        Command::Revoke(args) => revoke::run(context, args).await,
        Command::Ci(args) => ci::run(context, args).await,
        Command::Standing(args) => standing::run(context, args).await,
        Command::Order(args) => order::run(context, args).await,
        Command::Completions(args) => completions::run(context, args),
        Command::GenerateDocs(args) => generate_docs::run(context, args),
    }
}
