//! `bulkhead open`.

use crate::{
    Context,
    args::{AppService, MaybeEnvironment},
    error::{Error, Kind, Result},
    session::{As, Session, app_of, node_error, those_that_answered},
};
use bulkhead_core::{NodeName, fleet::FleetNode};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};

/// Opens a local port to a service, through SSH
///
/// Binds 127.0.0.1 alone and prints the address. One SSH connection carries all
/// that comes. Runs until interrupted.
#[derive(Debug, Args)]
pub struct OpenArgs {
    #[command(flatten)]
    environment: MaybeEnvironment,

    /// The service.
    #[arg(value_name = "APP/SERVICE")]
    pub target: AppService,

    /// The local port; a free one by default.
    #[arg(value_name = "LOCAL_PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,

    /// The node, where several run it; by default the first.
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeName>,
}

/// An open port; printed as soon as it is bound.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OpenReport {
    /// What to open: `http://127.0.0.1:PORT/`.
    pub url: String,
    /// The local port.
    pub port: u16,
    /// The node at the other end.
    pub node: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
}

/// Opens the port and serves it.
///
/// # Errors
/// The port is taken, the service does not run, or the connection ended.
pub async fn run(context: &Context, args: &OpenArgs) -> Result<()> {
    let session = Session::open(context)?;
    let environment = session.files.environment_or_only(args.environment.environment.as_ref())?;
    let nodes = session.files.all_nodes_in(&environment)?;
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await.map_err(|error| {
        let what = format!("cannot listen on 127.0.0.1:{}", args.port);
        Error::during(Kind::Usage, what, &error).hint("leave the port out to get a free one")
    })?;
    let (name, node) = running_on(context, &session, &nodes, &args.target, args.node.as_ref()).await?;
    let client = session.connect(&name, &node, As::Operator).await?;
    let address =
        listener.local_addr().map_err(|error| Error::during(Kind::Internal, "the local port is unknown", &error))?;
    let report = OpenReport {
        url: format!("http://{address}/"),
        port: address.port(),
        node: name.to_string(),
        app: args.target.app.to_string(),
        service: args.target.service.to_string(),
    };
    context.ui.until_interrupted();
    context.ui.result(&report, |report, paint| {
        format!("{}  {}/{} on {}\n", paint.bold(&report.url), report.app, report.service, report.node)
    })?;
    if context.ui.is_interactive() {
        context.ui.note("interrupt to close it");
    }
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .map_err(|error| Error::during(Kind::Internal, "the local port is broken", &error))?;
        let (client, context, target) = (client.clone(), context.clone(), args.target.clone());
        tokio::spawn(async move {
            let copied = async {
                // Small requests and answers must not wait for each other.
                stream
                    .set_nodelay(true)
                    .map_err(|error| Error::during(Kind::Internal, "the local connection is broken", &error))?;
                carry(&client, &target, stream).await
            };
            if let Err(error) = copied.await {
                context.ui.warn(&error);
            }
        });
    }
}

async fn carry(client: &bulkhead_fleet::NodeClient, target: &AppService, stream: TcpStream) -> Result<()> {
    let tunnel = client.open(target.app.clone(), target.service.clone()).await;
    let tunnel = tunnel.map_err(|error| node_error(&error))?;
    tunnel.copy(stream).await.map(drop).map_err(|error| node_error(&error))
}

/// The node that was named, or the first that runs the service.
///
/// # Errors
/// None does.
pub(crate) async fn running_on(
    context: &Context,
    session: &Session,
    nodes: &[(NodeName, FleetNode)],
    target: &AppService,
    named: Option<&NodeName>,
) -> Result<(NodeName, FleetNode)> {
    if let Some(named) = named {
        return session.files.named(nodes, named);
    }
    if let [only] = nodes {
        return Ok(only.clone());
    }
    let statuses = those_that_answered(context, session.statuses(nodes).await?)?;
    let running = statuses.iter().find(|(_, status)| {
        app_of(status, &target.app).is_some_and(|app| {
            app.services.iter().any(|service| service.service == target.service && service.state == "active")
        })
    });
    let found = running.and_then(|(running, _)| nodes.iter().find(|(name, _)| name == running));
    found.cloned().ok_or_else(|| {
        Error::configuration(format!("{}/{} runs on no node that answered", target.app, target.service))
            .hint("`bulkhead ps` shows what runs where")
    })
}
