//! The build container: its settings are data, made by one function and tested without an engine; and
//! the marks in it, which tell whether its hook has begun and how it ended.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions,
};
use secrecy::ExposeSecret;
use shared::build::{BuildId, BuildRequest, CommitSha, GitRef};
use shared::config::HookConfig;
use uuid::Uuid;

use crate::engine::{ContainerInfo, Engine, EngineError, Phase};
use crate::log::Secrets;
use crate::registry;

/// The label that every object of a build carries; its value is the build's id.
pub const BUILD_LABEL: &str = "compose-ci.build";
/// The label of what a person wants to keep (`GARBAGE_COLLECT=0`).
pub const KEEP_LABEL: &str = "compose-ci.keep";
/// The label that compose gives to all that belongs to a project.
pub const COMPOSE_PROJECT_LABEL: &str = "com.docker.compose.project";
/// Every version of compose puts it on the containers that it makes, by `up` as by `run`, and on no image.
pub const COMPOSE_CONTAINER_LABEL: &str = "com.docker.compose.oneoff";

/// The second mount of the checkout, besides its own host path, for `docker cp <uuid>:/tarball .`
pub(crate) const TARBALL_DIR: &str = "/tarball";
/// The engine's socket in the build container.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// A directory of ours in the build container, which comes with the checkout: every user of every image
/// can write there, and no hook has a reason to remove it.
pub(crate) const OUR_DIR: &str = "/.compose-ci";
/// The beginning of the wrapper's marks: a dot follows, and the hook's exit code or `begun`.
const MARK: &str = "/.compose-ci/hook";

/// Variables that our own image sets for the service and no hook should see: a compose file that says
/// `${PORT:-3000}` does not mean the service's.
const SERVICE_DEFAULTS: [&str; 2] = ["DATA_DIR", "PORT"];

/// Waits for its go on the standard input: the container runs while the checkout comes, and so no prune
/// takes it. A worker that goes away closes the input, and nothing begins. With a begin mark there is
/// nothing to wait for: a person has started the container again.
///
/// Without a begin mark no hook runs: the mark is how another worker knows that it did.
const WAIT: &str = r#"
trap 'exit 143' TERM INT
[ -e "$0.begun" ] || read -r go || exit 125
rm -f "$0".*
command : > "$0.begun" || exit 125
"#;

/// Runs the hook between a begin mark and an end mark (`$0` is [`MARK`]). It is the container's first
/// process, so it must pass a TERM on itself: the kernel gives the first process no default action
/// for it, and shells do not forward signals. `wait` returns early when a signal comes, hence the
/// loop.
///
/// A hook that was asked to end has proved nothing, even if it answers 0 as many programs do: it
/// leaves no mark, and its exit code, which an interrupted `wait` may miss, is that of TERM.
///
/// Both outputs are one pipe, which keeps the order of what is written; of two the engine reads
/// now one, now the other. The last that is written there is the proof of the end ([`end_proof`]),
/// for a container that somebody removes as soon as it has ended.
const WRAPPER: &str = r#"
exec 2>&1
stopped=
trap 'stopped=1; kill -TERM -1' TERM INT
sh -c "$HOOK" </dev/null &
hook=$!
while :; do
  wait "$hook"
  code=$?
  kill -0 "$hook" 2>/dev/null || break
done
[ -z "$stopped" ] || exit 143
command : 2>/dev/null > "$0.$code"
printf '\033]compose-ci;%s;%s\007' "$1" "$code"
exit "$code"
"#;

/// A build: its commit, its hook, and the container that it runs in.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The request for it. Its id names the container.
    pub request: BuildRequest,
    /// The commit.
    pub commit: CommitSha,
    /// The page of the build.
    pub build_url: Option<String>,
    /// The hook, and its limits.
    pub hook: HookConfig,
    /// The image to run in.
    pub image: String,
    /// The engine's socket on the engine's host.
    pub socket: PathBuf,
    /// The values that the log must not show.
    pub secrets: Secrets,
    /// The ledger's answer: the hook may have been started before.
    pub may_have_begun: bool,
}

impl Spec {
    /// The container's name, which is the lock: the engine refuses a second one.
    pub(crate) fn container_name(&self) -> String {
        self.request.id.to_string()
    }

    /// The labels of the volume and the container of this build.
    pub(crate) fn labels(&self) -> HashMap<String, String> {
        let id = self.request.id.to_string();
        let mut labels = HashMap::from([(BUILD_LABEL.to_owned(), id)]);
        if !self.hook.garbage_collect {
            labels.insert(KEEP_LABEL.to_owned(), "1".to_owned());
        }
        labels
    }
}

/// The name of the build's checkout volume.
pub fn volume_name(build: BuildId) -> String {
    format!("compose-ci-{build}")
}

/// Recognizes the name that compose makes up for an image: `<project>-<service>`, or with an underscore
/// before v2.
pub fn is_named_by_compose(tag: &str, project: &str) -> bool {
    tag.strip_prefix(project)
        .is_some_and(|rest| rest.starts_with(['-', '_']))
}

/// Recognizes by its labels an object that this program has made for a build.
pub(crate) fn is_of(build: BuildId, labels: &HashMap<String, String>) -> bool {
    labels.get(BUILD_LABEL) == Some(&build.to_string())
}

/// The engine's body to create the build container with. `checkout` is the volume's path on the
/// engine's host; `nonce` is in no other container.
pub(crate) fn create_body(spec: &Spec, checkout: &Path, nonce: Uuid) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: Some(entrypoint(&spec.hook, nonce)),
        cmd: Some(Vec::new()),
        working_dir: Some(checkout.to_string_lossy().into_owned()),
        env: Some(environment(spec)),
        labels: Some(spec.labels()),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(true),
        // It is closed with the connection of the worker.
        stdin_once: Some(true),
        // The service's image has a health check for the service.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        host_config: Some(host_config(spec, checkout)),
        ..Default::default()
    }
}

/// The login comes before the hook, and only where there is one.
fn entrypoint(hook: &HookConfig, nonce: Uuid) -> Vec<String> {
    let log_in = hook.registry.as_ref().map_or("", |_| registry::LOG_IN);
    let script = format!("{WAIT}{log_in}{WRAPPER}");
    let nonce = nonce.simple().to_string();
    ["/bin/sh", "-c", &script, MARK, &nonce]
        .map(str::to_owned)
        .into()
}

fn host_config(spec: &Spec, checkout: &Path) -> HostConfig {
    let hook = &spec.hook;
    let memory = hook.memory_bytes.map(saturating_i64);
    HostConfig {
        mounts: Some(mounts(spec, checkout)),
        log_config: Some(engine_log(hook.log_limit_bytes)),
        memory,
        // The same value means: no swap on top. A build that swaps is a host that stands still.
        memory_swap: memory,
        nano_cpus: hook.nano_cpus,
        pids_limit: Some(hook.pids),
        ..Default::default()
    }
}

/// The checkout at its own host path, so that a path in the build container is the same path on
/// the engine's host and compose's bind mounts work; and again at `/tarball`.
fn mounts(spec: &Spec, checkout: &Path) -> Vec<Mount> {
    let volume = volume_name(spec.request.id);
    let checkout_at = |target: &str| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.clone()),
        target: Some(target.to_owned()),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            // For one that a prune took before the container was made, and the engine makes again.
            labels: Some(spec.labels()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let socket = Mount {
        typ: Some(MountType::BIND),
        source: Some(spec.socket.to_string_lossy().into_owned()),
        target: Some(DOCKER_SOCKET.to_owned()),
        ..Default::default()
    };
    vec![
        checkout_at(&checkout.to_string_lossy()),
        checkout_at(TARBALL_DIR),
        socket,
    ]
}

/// The engine's own copy of the log, for `docker logs <uuid>`, with a cap.
fn engine_log(limit_bytes: u64) -> HostConfigLogConfig {
    let options = [
        ("max-size", limit_bytes.to_string()),
        ("max-file", "2".to_owned()),
        ("compress", "false".to_owned()),
    ];
    HostConfigLogConfig {
        typ: Some("local".to_owned()),
        config: Some(options.map(|(key, value)| (key.to_owned(), value)).into()),
    }
}

/// The environment of the hook. Somebody else's text, such as a branch's name, stands here as a value
/// and nowhere in a command.
fn environment(spec: &Spec) -> Vec<String> {
    let (request, hook) = (&spec.request, &spec.hook);
    let mut env: BTreeMap<&str, &str> = hook
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let id = request.id.to_string();
    let project = request.id.compose_project();
    let login = hook.registry.as_ref().map(registry::members);
    env.extend([
        ("HOOK", hook.command.as_str()),
        ("CI", "true"),
        ("FORCE_COLOR", "1"),
        ("CLICOLOR_FORCE", "1"),
        ("COMPOSE_PROJECT_NAME", project.as_str()),
        ("build_id", id.as_str()),
        ("repo", request.repo.as_str()),
        ("commit", spec.commit.as_str()),
        ("short_commit", spec.commit.short()),
    ]);
    env.extend(spec.build_url.as_deref().map(|url| ("build_url", url)));
    env.extend(
        login
            .iter()
            .map(|login| (registry::VARIABLE, login.expose_secret())),
    );
    env.extend(request.git_ref.as_ref().map(|git_ref| match git_ref {
        GitRef::Branch(name) => ("branch", name.as_str()),
        GitRef::Tag(name) => ("tag", name.as_str()),
    }));
    let set = env.iter().map(|(name, value)| format!("{name}={value}"));
    // A name alone takes the variable out of the image's environment.
    let unset = SERVICE_DEFAULTS.map(str::to_owned);
    set.chain(unset).collect()
}

/// The path of the mark that a hook with this exit code leaves in a container. The code stands in the name
/// because the engine tells much faster whether a file exists than what is in it.
pub(crate) fn end_mark(container: &ContainerInfo) -> String {
    format!("{}.{}", mark(container), container.exit_code)
}

/// The path of the mark that the hook of a container has begun.
pub(crate) fn begin_mark(container: &ContainerInfo) -> String {
    format!("{}.begun", mark(container))
}

/// Finds out when the hook of a container began; nothing if it has not. A container that still waits for
/// its go is ended first, so that the answer holds.
///
/// # Errors
/// The container is gone, or the engine does not answer.
pub(crate) async fn began_at(
    engine: &Engine,
    found: &ContainerInfo,
) -> Result<Option<SystemTime>, EngineError> {
    let mark = begin_mark(found);
    let marked = engine.written_at(&found.id, &mark).await?;
    match found.phase {
        Phase::Running if marked.is_none() && found.waits_for_go => {
            engine.kill(&found.id).await?;
            engine.written_at(&found.id, &mark).await
        }
        // An older version made it, whose hooks began with the container.
        Phase::Running | Phase::Exited if !found.waits_for_go => {
            Ok(Some(found.started_at.unwrap_or_else(SystemTime::now)))
        }
        _ => Ok(marked),
    }
}

/// The directory of a container's marks.
pub(crate) fn marks_dir(container: &ContainerInfo) -> &str {
    mark(container)
        .rsplit_once('/')
        .map_or(OUR_DIR, |(directory, _)| directory)
}

/// The beginning of what the wrapper writes when the hook has ended by itself; the exit code and a BEL
/// follow. A terminal shows nothing of it.
pub(crate) fn end_proof(nonce: Uuid) -> String {
    format!("\x1b]compose-ci;{};", nonce.simple())
}

/// The nonce of a container. Those of older versions have none.
pub(crate) fn nonce(container: &ContainerInfo) -> Option<Uuid> {
    container.entrypoint.get(4)?.parse().ok()
}

/// An older version may have made the container: its wrapper knows where its marks are.
fn mark(container: &ContainerInfo) -> &str {
    container.entrypoint.get(3).map_or(MARK, String::as_str)
}

fn saturating_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The usual place of an engine's socket, for an engine that is reached over TCP.
pub fn default_socket() -> PathBuf {
    DOCKER_SOCKET.into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::build::ForgeKind;
    use shared::config::RegistryLogin;

    use super::*;

    fn hook() -> HookConfig {
        HookConfig {
            command: "make test".into(),
            env: BTreeMap::from([
                ("AWS_REGION".to_owned(), "eu-west-1".to_owned()),
                ("commit".to_owned(), "not this one".to_owned()),
            ]),
            image: None,
            registry: None,
            timeout: Duration::from_secs(60),
            memory_bytes: Some(1 << 30),
            nano_cpus: Some(1_500_000_000),
            pids: 4096,
            log_limit_bytes: 64 << 20,
            garbage_collect: true,
            rerun_interrupted: false,
        }
    }

    fn body(git_ref: Option<&str>, hook: &HookConfig) -> ContainerCreateBody {
        let request = BuildRequest {
            forge: ForgeKind::Github,
            id: "67e55044-10b1-426f-9247-bb680e5fe0c8"
                .parse()
                .expect("uuid"),
            repo: "octo/hello".parse().expect("repo"),
            revision: "main".parse().expect("revision"),
            git_ref: git_ref.map(|text| text.parse().expect("ref")),
        };
        let spec = Spec {
            request,
            commit: "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"
                .parse()
                .expect("sha"),
            build_url: Some("https://ci.example.org/builds/67e55044".into()),
            hook: hook.clone(),
            image: "compose-ci".into(),
            socket: "/run/user/1000/docker.sock".into(),
            secrets: Secrets::new(&[]),
            may_have_begun: false,
        };
        let checkout = Path::new("/var/lib/docker/volumes/x/_data");
        create_body(&spec, checkout, Uuid::nil())
    }

    #[test]
    fn the_hook_finds_its_commit_in_the_environment() {
        let env = body(Some("refs/heads/$(reboot)"), &hook())
            .env
            .expect("env");
        insta::assert_snapshot!(env.join("\n"), @r"
        AWS_REGION=eu-west-1
        CI=true
        CLICOLOR_FORCE=1
        COMPOSE_PROJECT_NAME=ci-67e5504410b1426f9247bb680e5fe0c8
        FORCE_COLOR=1
        HOOK=make test
        branch=$(reboot)
        build_id=67e55044-10b1-426f-9247-bb680e5fe0c8
        build_url=https://ci.example.org/builds/67e55044
        commit=0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c
        repo=octo/hello
        short_commit=0d1a26e
        DATA_DIR
        PORT
        ");
        let tag = body(Some("refs/tags/v1"), &hook()).env.expect("env");
        assert!(tag.contains(&"tag=v1".to_owned()), "{tag:?}");
    }

    #[test]
    fn a_login_is_in_the_environment_and_in_no_command() {
        let login = HookConfig {
            registry: Some(RegistryLogin {
                registry: "registry.example.org".parse().expect("a registry"),
                user: "ci".into(),
                password: "pass".into(),
            }),
            ..hook()
        };
        let body = body(None, &login);
        let commands = format!("{:?} {:?}", body.entrypoint, body.cmd);
        assert!(commands.contains(registry::VARIABLE), "{commands}");
        assert!(!commands.contains("Y2k6cGFzcw"), "{commands}");
        let env = body.env.expect("env").join("\n");
        assert!(env.contains("Y2k6cGFzcw"), "{env}");
    }

    #[test]
    fn somebody_elses_text_is_in_no_command() {
        let hostile = body(Some("refs/heads/$(reboot)"), &hook());
        assert_eq!(hostile.entrypoint, body(None, &hook()).entrypoint);
        assert_eq!(hostile.cmd, Some(vec![]));
    }

    #[test]
    fn the_checkout_is_the_working_directory_at_its_own_host_path() {
        let body = body(None, &hook());
        let checkout = "/var/lib/docker/volumes/x/_data";
        assert_eq!(body.working_dir.as_deref(), Some(checkout));
        let host = body.host_config.expect("host config");
        let mounts: Vec<_> = host
            .mounts
            .expect("mounts")
            .into_iter()
            .map(|mount| (mount.source.expect("source"), mount.target.expect("target")))
            .collect();
        let volume = "compose-ci-67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(
            mounts,
            [
                (volume.into(), checkout.into()),
                (volume.into(), "/tarball".into()),
                (
                    "/run/user/1000/docker.sock".into(),
                    "/var/run/docker.sock".into()
                ),
            ]
        );
    }

    #[test]
    fn the_limits_are_the_configured_ones() {
        let host = body(None, &hook()).host_config.expect("host config");
        assert_eq!(host.memory, Some(1 << 30));
        assert_eq!(host.memory_swap, host.memory);
        assert_eq!(host.nano_cpus, Some(1_500_000_000));
        assert_eq!(host.pids_limit, Some(4096));
        let log = host.log_config.expect("log").config.expect("options");
        assert_eq!(log["max-size"], (64 << 20).to_string());
    }

    #[test]
    fn what_is_kept_says_so() {
        let keep = HookConfig {
            garbage_collect: false,
            ..hook()
        };
        assert!(
            body(None, &keep)
                .labels
                .expect("labels")
                .contains_key(KEEP_LABEL)
        );
        assert!(
            !body(None, &hook())
                .labels
                .expect("labels")
                .contains_key(KEEP_LABEL)
        );
    }

    #[test]
    fn only_names_that_compose_made_up_are_the_projects() {
        let project = "ci-0a1b";
        assert!(is_named_by_compose("ci-0a1b-web:latest", project));
        assert!(is_named_by_compose("ci-0a1b_web:latest", project));
        for other in ["ci-0a1bc-web:latest", "team/app:latest", "ci-0a1b:latest"] {
            assert!(!is_named_by_compose(other, project), "{other}");
        }
    }
}
