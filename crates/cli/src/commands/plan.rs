//! `bulkhead plan`.

use crate::{
    Context,
    args::Environment,
    deployment::{asked, build_image, plan_over},
    error::Result,
    plan::Wanted,
    session::Session,
    workspace::{App, FleetFiles},
};
use clap::Args;

/// Shows what a deploy would change, where, and what would be sent; changes nothing
///
/// Builds the image, asks every node of the environment what runs, and shows
/// the difference.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    environment: Environment,

    /// Refuses to change `bulkhead.lock`.
    #[arg(long)]
    pub locked: bool,
}

/// Shows the plan.
///
/// # Errors
/// The image cannot be built or no node answers.
pub async fn run(context: &Context, args: &PlanArgs) -> Result<()> {
    let app = App::load(&context.places)?;
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let nodes = app.nodes_in(&files, environment)?;
    let session = Session::of(context, files)?;
    let (built, present) =
        tokio::join!(build_image(context, &app, args.locked), asked(&session, &nodes, &app.manifest.app));
    let (built, asked) = (built?, present?);
    let wanted = Wanted {
        verb: "deploy",
        app: &app.manifest.app,
        environment,
        image_id: &built.id.to_string(),
        image: Some(&built.image),
        services: &app.manifest.services_in(environment),
        origin: None,
    };
    let plan = plan_over(&session, wanted, built.id, &asked.present, &asked.left);
    context.ui.result(&plan, |plan, paint| plan.render(paint))
}
