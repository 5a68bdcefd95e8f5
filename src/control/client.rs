//! The client side of the control API, for commands that do nothing else while they wait for an answer.

mod pools;
mod sharing;

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes as Body;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use memvisor_wire::vm_name::{NameError, check_vm_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use super::{AgentToken, BalloonRequest, ErrorBody, ReloadReport, SettingRequest, UnswapRequest};
use crate::settings::{DEFAULT, Key, PoolSettingsError, Scalar, SettingView, VmPatch};
use crate::telemetry::{HostStatus, VmStatus};
use crate::units::Bytes;

/// The longest wait for an answer; the daemon answers within milliseconds unless it is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of an answer: a VM takes about 2 KiB, so this is room for thousands.
const ANSWER_MAX: usize = 16 << 20;

/// Why a request to the daemon failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens: there is no socket, or its daemon is gone.
    #[error(
        "no memvisor host is running at `{path}`: start one with `memvisor host --memory SIZE`"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot connect to `{path}`")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("the daemon ended the connection")]
    Broken(#[source] hyper::Error),
    /// No answer came in time.
    #[error("the daemon did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// The answer is larger than any that makes sense.
    #[error("the answer is longer than {ANSWER_MAX} bytes")]
    TooLong,
    /// The daemon refuses.
    #[error("{}; allowed: {}", body.error, body.allowed)]
    Refused {
        /// The HTTP status code.
        status: u16,
        /// What the daemon says.
        body: ErrorBody,
    },
    /// The answer is not what this version expects.
    #[error("cannot understand the daemon's answer (status {status})")]
    Decode {
        /// The HTTP status code.
        status: u16,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The text given as the name of a VM cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The text given as the name of a resource pool cannot be one.
    #[error("{}", .0.in_full())]
    PoolName(#[from] PoolSettingsError),
    /// The async runtime cannot be made.
    #[error("cannot make a runtime for the client")]
    Runtime(#[source] io::Error),
}

impl ClientError {
    /// Whether the daemon is not there, or went away during the request.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Broken(_))
    }

    /// Whether the daemon has no VM of that name, or no balloon agent of it: a guest that has just been started gets both.
    #[must_use]
    pub fn is_early(&self) -> bool {
        let early = [StatusCode::NOT_FOUND, StatusCode::CONFLICT];
        matches!(self, Self::Refused { status, .. } if early.iter().any(|it| it == status))
    }
}

/// Sends requests to one daemon, each over a connection of its own.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the daemon that listens at `socket`; nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Runtime`].
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        let socket = socket.into();
        Ok(Self { socket, runtime })
    }

    /// The whole host.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<HostStatus, ClientError> {
        self.request(Method::GET, "/v1/status", None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// All VMs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn vms(&self) -> Result<Vec<VmStatus>, ClientError> {
        self.request(Method::GET, "/v1/vms", None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// One VM.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 if it is not running, else as any.
    pub fn vm(&self, name: &str) -> Result<VmStatus, ClientError> {
        self.request(Method::GET, &vm_path(name)?, None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// Sets the balloon target of a VM, or gives it back to the policy with `None`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the daemon refuses the size, else as any.
    pub fn set_balloon(&self, name: &str, target: Option<Bytes>) -> Result<VmStatus, ClientError> {
        let body = BalloonRequest {
            target_bytes: target,
        };
        let path = format!("{}/balloon", vm_path(name)?);
        self.request(Method::PUT, &path, Some(&body))
            .and_then(|answer| answer.decode())
    }

    /// Has the swapped pages of a VM brought back, so many a second; `None`: no longer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 if it is not running, else as any.
    pub fn set_unswap(
        &self,
        name: &str,
        rate: Option<NonZeroU32>,
    ) -> Result<VmStatus, ClientError> {
        let body = UnswapRequest { pages_per_s: rate };
        let path = format!("{}/unswap", vm_path(name)?);
        self.request(Method::PUT, &path, Some(&body))
            .and_then(|answer| answer.decode())
    }

    /// Ends a VM.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 if it is not running, else as any.
    pub fn kill(&self, name: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, &vm_path(name)?, None::<&()>)
            .map(drop)
    }

    /// Changes settings of a VM, all of them or none.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the values contradict each other, else as any.
    pub fn set_vm(&self, name: &str, patch: &VmPatch) -> Result<VmStatus, ClientError> {
        self.request(Method::PATCH, &vm_path(name)?, Some(patch))
            .and_then(|answer| answer.decode())
    }

    /// What a balloon agent of a VM says in its `START`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 if it is not running, else as any.
    pub fn token(&self, name: &str) -> Result<AgentToken, ClientError> {
        let path = format!("{}/token", vm_path(name)?);
        self.request(Method::GET, &path, None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// What the policy decided about a VM, and why.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with status 404 if it is not running, else as any.
    pub fn why(&self, name: &str) -> Result<serde_json::Value, ClientError> {
        let path = format!("{}/why", vm_path(name)?);
        self.request(Method::GET, &path, None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// All host settings.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn settings(&self) -> Result<Vec<SettingView>, ClientError> {
        self.request(Method::GET, "/v1/settings", None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// One host setting.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn setting(&self, key: Key) -> Result<SettingView, ClientError> {
        self.request(Method::GET, &setting_path(key), None::<&()>)
            .and_then(|answer| answer.decode())
    }

    /// Sets a host setting; `default` takes away what was set at run time.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it cannot have that value, else as any.
    pub fn set_setting(&self, key: Key, value: &str) -> Result<SettingView, ClientError> {
        let path = setting_path(key);
        let answer = if value == DEFAULT {
            self.request(Method::DELETE, &path, None::<&()>)
        } else {
            let value = Scalar::Text(value.to_owned());
            self.request(Method::PUT, &path, Some(&SettingRequest { value }))
        };
        answer?.decode()
    }

    /// Makes the daemon read its configuration file again.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the file has a fault, else as any.
    pub fn reload(&self) -> Result<ReloadReport, ClientError> {
        self.request(Method::POST, "/v1/reload", None::<&()>)
            .and_then(|answer| answer.decode())
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Answer, ClientError> {
        let body = body.map_or_else(Vec::new, |body| {
            serde_json::to_vec(body).expect("what a request is made of has come from text")
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            // HTTP/1.1 demands the header; on a Unix socket it can name anything.
            .header("host", "memvisor")
            .header("content-type", "application/json")
            .body(Full::new(Body::from(body)))
            .expect("the path is made of a checked name and constants");
        self.runtime.block_on(async {
            // Over all steps together: a daemon that is stopped still has connections made to it, and only never
            // answers.
            timeout(ANSWER_TIMEOUT, exchange(&self.socket, request))
                .await
                .map_err(|_elapsed| ClientError::Timeout)?
        })
    }
}

/// A success and its body.
struct Answer {
    status: StatusCode,
    body: Body,
}

impl Answer {
    fn decode<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|source| ClientError::Decode {
            status: self.status.as_u16(),
            source,
        })
    }
}

fn vm_path(name: &str) -> Result<String, NameError> {
    // Checked here, because a name with a slash would ask for something else.
    check_vm_name(name)?;
    Ok(format!("/v1/vms/{name}"))
}

fn setting_path(key: Key) -> String {
    format!("/v1/settings/{}", key.spec().name)
}

async fn exchange(socket: &Path, request: Request<Full<Body>>) -> Result<Answer, ClientError> {
    let stream = connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(ClientError::Broken)?;
    // Its result is not needed: errors of the connection also end the request, which reports them.
    let driver = tokio::spawn(connection);
    let answer = receive(&mut sender, request).await;
    // The answer is complete. A connection that is kept open for another request would outlive this call.
    driver.abort();
    answer
}

async fn receive(
    sender: &mut http1::SendRequest<Full<Body>>,
    request: Request<Full<Body>>,
) -> Result<Answer, ClientError> {
    let response = sender
        .send_request(request)
        .await
        .map_err(ClientError::Broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(body_error)?
        .to_bytes();
    let answer = Answer { status, body };
    if status.is_success() {
        return Ok(answer);
    }
    Err(ClientError::Refused {
        status: status.as_u16(),
        body: answer.decode()?,
    })
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        match source.kind() {
            // Refused: a daemon that was killed has left its socket there.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            _ => ClientError::Connect { path, source },
        }
    })
}

fn body_error(error: Box<dyn std::error::Error + Send + Sync>) -> ClientError {
    match error.downcast::<hyper::Error>() {
        Ok(error) => ClientError::Broken(*error),
        Err(other) => {
            debug_assert!(other.is::<LengthLimitError>(), "unexpected: {other}");
            ClientError::TooLong
        }
    }
}
