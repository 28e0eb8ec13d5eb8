//! `bulkhead ci`.

use crate::{
    Context,
    deployment::build_image,
    error::{Error, Kind, Result},
    git,
    grants::keep_statement,
    session::{Answer, As, Session, now, sign_error},
    workspace::{App, FleetFiles, shown},
};
use bulkhead_core::{
    EnvironmentName, ImageId, SignedText, StatementId,
    policy::Role,
    statement::{NAMESPACE, Predicate, Statement, TestResult},
};
use bulkhead_fleet::sign::Signer;
use bulkhead_trust::PublicKey;
use bulkhead_wire::Paper;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;

/// For continuous integration
#[derive(Debug, Args)]
pub struct CiArgs {
    #[command(subcommand)]
    command: CiCommand,
}

#[derive(Debug, Subcommand)]
enum CiCommand {
    Mark(MarkArgs),
}

/// Signs that an image is green, or red, with a green key
///
/// Run it where no code of the project runs: whoever holds the green key can lie. The
/// statement goes to `.bulkhead/green/IMAGE.json` beside `fleet.toml`, and with `-e ENV` to that
/// environment's nodes, from where `bulkhead promote` takes it along.
#[derive(Debug, Args)]
pub struct MarkArgs {
    /// The image, by its whole id; the one that this folder makes where none is named.
    #[arg(value_name = "IMAGE")]
    pub image: Option<ImageId>,

    /// Its tests failed: it must not run where green is demanded.
    #[arg(long)]
    pub red: bool,

    /// Where the sources are kept.
    #[arg(long, value_name = "ADDRESS", env = "BULKHEAD_REPOSITORY")]
    pub repository: String,

    /// The commit it was built from; the one that this folder stands at where none is named.
    #[arg(long, value_name = "COMMIT", env = "BULKHEAD_COMMIT")]
    pub commit: Option<String>,

    /// Who built and tested it, such as the address of the run.
    #[arg(long, value_name = "ADDRESS", env = "BULKHEAD_BUILDER")]
    pub builder: String,

    /// Brings the statement to the nodes of this environment too.
    #[arg(short, long = "env", value_name = "ENV")]
    pub environment: Option<EnvironmentName>,
}

/// What was stated.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MarkReport {
    /// The image.
    pub image: String,
    /// `green` or `red`.
    pub colour: String,
    /// The statement's id, by which it can be revoked.
    pub statement: String,
    /// The file that has it.
    pub file: String,
    /// Nodes that have it.
    pub nodes: Vec<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(context: &Context, args: &CiArgs) -> Result<()> {
    match &args.command {
        CiCommand::Mark(args) => mark(context, args).await,
    }
}

async fn mark(context: &Context, args: &MarkArgs) -> Result<()> {
    let app = App::load(&context.places)?;
    let session = Session::of(context, FleetFiles::load(&context.places)?)?;
    let image = match args.image {
        Some(image) => image,
        None => build_image(context, &app, true).await?.id,
    };
    let commit = match &args.commit {
        Some(commit) => commit.clone(),
        None => match git::source(&app.directory) {
            Some(source) if !source.dirty => source.commit,
            Some(_) => {
                return Err(Error::configuration("files here differ from the commit")
                    .hint("commit them, or say which commit it is with `--commit`"));
            }
            None => return Err(Error::usage("this folder has no commit: name one with `--commit`")),
        },
    };
    let statement = Statement {
        app: app.manifest.app.clone(),
        image,
        predicate: Predicate {
            result: if args.red { TestResult::Failed } else { TestResult::Passed },
            fleet: session.files.fleet.fleet.clone(),
            repository: args.repository.clone(),
            commit,
            builder: args.builder.clone(),
            issued: now(),
        },
    };
    statement.check().map_err(Error::usage)?;
    let policy = &session.policy.policy;
    let green: Vec<&str> = policy.holders(Role::Green).map(|(_, key)| key.key.as_str()).collect();
    if green.is_empty() {
        return Err(Error::configuration("the policy has no green key")
            .hint("`bulkhead policy require -e production green+release --green-key ci.pub`"));
    }
    let signer = Signer::find(&session.identities, green).await.map_err(|error| sign_error(&error))?;
    let bytes = statement.to_bytes();
    let signature = signer.sign(NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
    let id = StatementId::of(&bytes);
    let text =
        String::from_utf8(bytes).map_err(|error| Error::during(Kind::Internal, "the statement is not text", &error))?;
    let signed = SignedText { text, signatures: vec![signature] };
    let path = keep_statement(&session.files.directory, image, signed.clone())?;
    let is_signers = |key: &str| PublicKey::parse(key).is_ok_and(|key| key == *signer.public_key());
    let may_bring = policy.holders(Role::Courier).any(|(_, key)| is_signers(&key.key));
    let needs_courier = "the statement is made; to bring it as well, its key needs the role `courier` \
        (`bulkhead key add NAME KEY --role courier`)";
    let mut failed = None;
    let mut nodes = Vec::new();
    if let Some(environment) = &args.environment {
        let targets = session.files.nodes_in(environment)?;
        let answers = session
            .ask_all(&targets, As::Courier, move |client| {
                let signed = signed.clone();
                async move { client.bring(Paper::Statement, &signed).await }
            })
            .await?;
        for Answer { node, result } in answers {
            match result {
                Ok(()) => nodes.push(node.to_string()),
                Err(error) => failed = failed.or(Some(if may_bring { error } else { error.hint(needs_courier) })),
            }
        }
    }
    let report = MarkReport {
        image: image.to_string(),
        colour: statement.colour().into(),
        statement: id.to_string(),
        file: shown(&path).to_string(),
        nodes,
    };
    context.ui.result(&report, |report, paint| {
        let brought = match report.nodes.as_slice() {
            [] => String::new(),
            nodes => format!(", and on {}", nodes.join(", ")),
        };
        let what = format!("image {} is {}", image.short(), report.colour);
        format!("{}: statement {} in {}{brought}\n", paint.bold(&what), id.short(), report.file)
    })?;
    failed.map_or(Ok(()), Err)
}
