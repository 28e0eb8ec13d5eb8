//! `bulkhead standing`.

use crate::{
    Context,
    args::Environment,
    error::{Error, Kind, Result},
    grants::write_signed,
    session::{Purpose, Session, now, sign_error},
    workspace::{App, FleetFiles, shown},
};
use bulkhead_core::{
    NodeName, OrderId, SignedText,
    standing::{NAMESPACE, StandingOrder},
};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::PathBuf;

const DAY_S: i64 = 24 * 3600;

/// Allows CI to deploy this app by itself, within bounds
///
/// For environments that accept `green+standing`: orders that a green key signs are
/// covered as long as they have exactly the services and settings that the manifest has
/// now, and a green image. `bulkhead deploy --standing FILE` brings it along. Any one
/// release key ends it early: `bulkhead revoke --order ID`.
#[derive(Debug, Args)]
pub struct StandingArgs {
    #[command(flatten)]
    environment: Environment,

    /// How many orders it covers on each node.
    #[arg(long, value_name = "NUMBER")]
    pub uses: u32,

    /// For how many days.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=366))]
    pub days: u16,

    /// Only for these nodes.
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<NodeName>,

    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = ".bulkhead/standing.json")]
    pub out: PathBuf,

    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,
}

/// What was allowed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StandingReport {
    /// Its id, by which it can be revoked.
    pub order: String,
    /// The file that has it.
    pub file: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    /// How many orders it covers on each node.
    pub uses: u32,
}

/// Signs a standing order.
///
/// # Errors
/// Nobody agreed, or keys are missing.
pub async fn run(context: &Context, args: &StandingArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let app = App::load(&context.places)?;
    app.must_be_outside(&args.out)?;
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let nodes = app.nodes_in(&files, environment)?;
    for wanted in &args.nodes {
        files.named(&nodes, wanted)?;
    }
    let session = Session::of(context, files)?;
    if !session.environment(environment)?.accepts.iter().any(|demand| demand.standing) {
        return Err(Error::configuration(format!("`{environment}` accepts no order by a standing order"))
            .hint(format!("`bulkhead policy require -e {environment} … green+standing` has it accept some")));
    }
    let issued = now();
    let standing = StandingOrder {
        format: 1,
        fleet: session.files.fleet.fleet.clone(),
        environment: environment.clone(),
        app: app.manifest.app.clone(),
        nodes: args.nodes.iter().cloned().collect(),
        services: app.manifest.services_in(environment),
        issued,
        not_after: issued.plus_s(i64::from(args.days) * DAY_S),
        uses_max: args.uses,
    };
    standing.check().map_err(|what| Error::usage(format!("this standing order would be refused: {what}")))?;
    let signers = session.signers(environment, Purpose::People).await?;
    let bytes = standing.to_bytes();
    context.ui.preview(|_| String::from_utf8_lossy(&bytes).into_owned())?;
    let question = format!("Let CI deploy {} to {environment} {} times on each node?", standing.app, args.uses);
    context.ui.confirm(&question, args.yes).await?;
    let mut signatures = Vec::with_capacity(signers.len());
    for signer in signers {
        signatures.push(signer.sign(NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?);
    }
    let id: OrderId = StandingOrder::id(&bytes);
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::during(Kind::Internal, "the standing order is not text", &error))?;
    write_signed(&args.out, &SignedText { text, signatures })?;
    let report = StandingReport {
        order: id.to_string(),
        file: shown(&args.out).to_string(),
        not_after: standing.not_after.0,
        uses: args.uses,
    };
    context.ui.result(&report, |report, paint| {
        let what = format!("standing order {id}");
        format!(
            "{}: {} uses on each node, until {}, in {}\n",
            paint.bold(&what),
            report.uses,
            standing.not_after,
            report.file
        )
    })
}
