//! `bulkhead order`.

use crate::{
    Context,
    error::{Error, Kind, Result},
    grants::{read_signed, write_signed},
    output::printable_lines,
    proposal::name_of,
    session::{Session, now, sign_error},
    workspace::shown,
};
use bulkhead_core::{
    SignedText,
    order::{NAMESPACE, Order},
    policy::Role,
};
use bulkhead_fleet::sign::Signer;
use bulkhead_trust::sshsig;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use std::path::PathBuf;

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
    format!("{}signed by {by}\n", printable_lines(&report.text))
}
