//! `bulkhead order`.

use crate::{
    Context,
    error::{Error, Kind, Result},
    grants::{read_signed, write_signed},
    output::printable_lines,
    proof::Proof,
    proposal::name_of,
    session::{As, Session, app_of, now, sign_error},
    workspace::shown,
};
use bulkhead_core::{
    SignedText,
    order::{Action, NAMESPACE, Order, Run},
    policy::Role,
};
use bulkhead_fleet::sign::Signer;
use bulkhead_trust::sshsig;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::BTreeSet, path::PathBuf};

/// Orders that several people must sign, as files
///
/// `bulkhead deploy --draft FILE` writes one, `--order FILE` sends it.
#[derive(Debug, Args)]
pub struct OrderFileArgs {
    #[command(subcommand)]
    command: OrderCommand,
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    Show(FileArgs),
    Sign(SignArgs),
}

/// Shows an order and who has signed it
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Shows an order, and signs it with the release keys at hand
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,
}

/// An order and who has signed it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OrderFileReport {
    /// The order's exact text.
    pub text: String,
    /// Who has signed: holders where the policy names them, and fingerprints.
    pub signed_by: Vec<String>,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, args: &OrderFileArgs) -> Result<()> {
    match &args.command {
        OrderCommand::Show(args) => {
            let session = Session::open(context)?;
            let signed = read_signed(&args.file)?;
            context.ui.result(&report(&session, &signed)?, |report, _| render(report))
        }
        OrderCommand::Sign(args) => sign(context, args).await,
    }
}

async fn sign(context: &Context, args: &SignArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let session = Session::open(context)?;
    let mut signed = read_signed(&args.file)?;
    let before = report(&session, &signed)?;
    if before.not_after <= now().0 {
        return Err(Error::configuration(format!("the order in {} has expired: draft it again", shown(&args.file))));
    }
    context.ui.preview(|_| render(&before))?;
    check_listed(&session, &signed).await?;
    context.ui.confirm("\nSign this order?", args.yes).await?;
    let policy = &session.policy.policy;
    let holders: Vec<&str> = policy.holders(Role::Release).map(|(_, key)| key.key.as_str()).collect();
    let bytes = signed.text.clone().into_bytes();
    let done: Vec<_> =
        signed.signatures.iter().filter_map(|text| Some(sshsig::verify(text, NAMESPACE, &bytes).ok()?.key)).collect();
    let signers = Signer::find_all(&session.identities, holders).await.map_err(|error| sign_error(&error))?;
    let mut count = 0;
    for signer in signers.iter().filter(|signer| !done.contains(signer.public_key())) {
        signed.signatures.push(signer.sign(NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?);
        count += 1;
    }
    if count == 0 {
        return Err(Error::configuration("every release key at hand has signed it already"));
    }
    write_signed(&args.file, &signed)?;
    context.ui.result(&report(&session, &signed)?, |report, _| {
        format!("{} signed by {}\n", shown(&args.file), report.signed_by.join(", "))
    })
}

/// What an order lists to go back to may run on one release key later, so whoever signs it signs that as well: each must
/// be what is live by an order that proves it.
async fn check_listed(session: &Session, signed: &SignedText) -> Result<()> {
    let order = Order::parse(signed.text.as_bytes()).map_err(|error| Error::of(Kind::Configuration, &error))?;
    let Action::Run(run) = &order.action else { return Ok(()) };
    if run.fallback.is_empty() {
        return Ok(());
    }
    let nodes: Vec<_> = session.files.nodes_in(&order.environment)?;
    let nodes: Vec<_> = nodes.into_iter().filter(|(name, _)| order.targets.contains_key(name)).collect();
    let answers = session.ask_all(&nodes, As::Courier, |client| async move { client.status().await }).await?;
    let proof = Proof::of(session, &order.environment);
    let mut live = BTreeSet::new();
    let mut away = Vec::new();
    for answer in answers {
        match answer.result {
            Ok(status) => live.extend(app_of(&status, &order.app).and_then(|app| {
                let release = proof.release(&answer.node, app.live.as_ref()?).ok()?;
                Some(Run::new(release.image?, release.services).id())
            })),
            Err(_) => away.push(answer.node.to_string()),
        }
    }
    if run.fallback.is_subset(&live) {
        return Ok(());
    }
    let message =
        "the order lists something to go back to that no node proves to run now: one release key could start it later";
    let error =
        Error::new(Kind::Refused, message).hint("have it drafted again: a draft lists what is live, and nothing else");
    Err(if away.is_empty() { error } else { error.hint(format!("{} did not answer", away.join(", "))) })
}

fn report(session: &Session, signed: &SignedText) -> Result<OrderFileReport> {
    let order = Order::parse(signed.text.as_bytes()).map_err(|error| Error::of(Kind::Configuration, &error))?;
    let policy = &session.policy.policy;
    let name = |armoured: &String| {
        let signer = sshsig::verify(armoured, NAMESPACE, signed.text.as_bytes());
        signer.map_or_else(
            |error| format!("a signature that is no good ({error})"),
            |by| name_of(policy, &by.key.to_openssh()),
        )
    };
    Ok(OrderFileReport {
        text: signed.text.clone(),
        signed_by: signed.signatures.iter().map(name).collect(),
        not_after: order.not_after.0,
    })
}

fn render(report: &OrderFileReport) -> String {
    let by = if report.signed_by.is_empty() { "nobody".into() } else { report.signed_by.join(", ") };
    format!("{}\nsigned by {by}\n", printable_lines(report.text.trim_end()))
}
