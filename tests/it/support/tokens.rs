//! Who may ask: nobody checked, Basic, or Bearer with the registry's own token endpoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode, header};

use super::answer::{Asked, Reply, Route, parse_form};

/// What clients must show.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Nothing.
    #[default]
    Anonymous,
    /// User and password on every request.
    Basic(Login),
    /// A token from `/token`.
    Bearer(Bearer),
}

/// A user and its password.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

/// How tokens are given and how long they hold.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Who gets a token; `None`: anybody.
    pub login: Option<Login>,
    /// What a client may show instead of a password, by POST.
    pub identity_token: Option<String>,
    pub lifetime: Duration,
    /// `expires_in` is left out of the answer: then 60 s holds (distribution token spec).
    pub lifetime_is_secret: bool,
    /// The token dies after so many requests, however young.
    pub uses_max: Option<u32>,
}

impl Login {
    /// A user and its password.
    pub fn new(user: &str, password: &str) -> Self {
        Login { user: user.to_owned(), password: password.to_owned() }
    }

    /// The value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Basic {}", base64(format!("{}:{}", self.user, self.password).as_bytes()))
    }
}

impl Default for Bearer {
    fn default() -> Self {
        Bearer {
            login: None,
            identity_token: None,
            lifetime: Duration::from_secs(300),
            lifetime_is_secret: false,
            uses_max: None,
        }
    }
}

/// The rule in force and the tokens given under it.
pub struct Tokens {
    address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    auth: Auth,
    given: u64,
    live: HashMap<String, Token>,
}

struct Token {
    /// `repository:NAME:pull`, one action each.
    grants: Vec<String>,
    dies: Instant,
    uses_left: Option<u32>,
}

impl Tokens {
    /// Nobody is checked.
    pub fn new(address: SocketAddr) -> Self {
        Tokens { address, state: Mutex::default() }
    }

    /// Changes the rule.
    pub fn set(&self, auth: Auth) {
        let mut state = self.state.lock().unwrap();
        state.auth = auth;
        state.live.clear();
    }

    /// Forgets every token.
    pub fn revoke(&self) {
        self.state.lock().unwrap().live.clear();
    }

    /// Lets a request pass, or answers it with a challenge.
    pub fn admit(&self, asked: &Asked) -> Result<(), Box<Reply>> {
        let mut state = self.state.lock().unwrap();
        let shown = asked.header(header::AUTHORIZATION).unwrap_or_default();
        match &state.auth {
            Auth::Anonymous => Ok(()),
            Auth::Basic(login) if shown == login.header() => Ok(()),
            Auth::Basic(_) => Err(Box::new(unauthorized("Basic realm=\"layoutfs tests\""))),
            Auth::Bearer(_) => {
                let wanted = grants_of(asked);
                let token = shown.strip_prefix("Bearer ").unwrap_or_default();
                let refusal = match state.live.get_mut(token).filter(|t| t.is_alive()) {
                    None if shown.is_empty() => "",
                    None => ",error=\"invalid_token\"",
                    Some(token) => {
                        if token.permits(&wanted) {
                            return Ok(());
                        }
                        ",error=\"insufficient_scope\""
                    }
                };
                Err(Box::new(self.challenge(&wanted, refusal)))
            }
        }
    }

    /// Answers `/token`: GET with Basic, or POST of a form with a password or identity token.
    pub fn give(&self, asked: &Asked, body: &[u8]) -> Reply {
        let mut state = self.state.lock().unwrap();
        let Auth::Bearer(bearer) = state.auth.clone() else {
            return Reply::new(StatusCode::NOT_FOUND);
        };
        let posted = asked.method == Method::POST;
        let form =
            if posted { parse_form(&String::from_utf8_lossy(body)) } else { asked.query.clone() };
        let value = |name: &str| form.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        if value("service") != Some(&self.address.to_string()) {
            return Reply::error(StatusCode::BAD_REQUEST, "UNSUPPORTED", "unknown service");
        }
        let shown = asked.header(header::AUTHORIZATION);
        let known = match value("grant_type") {
            Some("refresh_token") if posted => {
                bearer.identity_token.is_some()
                    && value("refresh_token") == bearer.identity_token.as_deref()
            }
            Some("password") if posted => bearer.login.as_ref().is_some_and(|login| {
                value("username") == Some(&login.user) && value("password") == Some(&login.password)
            }),
            _ if posted => false,
            _ => match (&bearer.login, shown) {
                (Some(login), Some(shown)) => shown == login.header(),
                (Some(_), None) => false,
                (None, _) => bearer.identity_token.is_none(),
            },
        };
        if !known {
            return unauthorized("Basic realm=\"token\"");
        }
        let scopes = form.iter().filter(|(n, _)| n == "scope").flat_map(|(_, v)| v.split(' '));
        let grants = scopes.flat_map(split_scope).collect();
        state.give(&bearer, grants)
    }

    fn challenge(&self, wanted: &[String], refusal: &str) -> Reply {
        let address = self.address;
        let scope = match wanted {
            [] => String::new(),
            [one] => format!(",scope=\"{one}\""),
            [pull, ..] => format!(",scope=\"{pull},push\""),
        };
        let realm = format!("Bearer realm=\"http://{address}/token\",service=\"{address}\"");
        unauthorized(&format!("{realm}{scope}{refusal}"))
    }
}

impl State {
    fn give(&mut self, bearer: &Bearer, grants: Vec<String>) -> Reply {
        self.given += 1;
        let name = format!("token-{}", self.given);
        let token =
            Token { grants, dies: Instant::now() + bearer.lifetime, uses_left: bearer.uses_max };
        self.live.insert(name.clone(), token);
        let mut answer = serde_json::json!({"token": name, "access_token": name});
        if !bearer.lifetime_is_secret {
            answer["expires_in"] = bearer.lifetime.as_secs().into();
        }
        Reply::new(StatusCode::OK).body("application/json", answer.to_string())
    }
}

impl Token {
    fn is_alive(&self) -> bool {
        Instant::now() < self.dies && self.uses_left != Some(0)
    }

    /// Uses the token up by one request, if it covers all that is wanted.
    fn permits(&mut self, wanted: &[String]) -> bool {
        let permitted = wanted.iter().all(|w| self.grants.contains(w));
        if let (true, Some(left)) = (permitted, &mut self.uses_left) {
            *left -= 1;
        }
        permitted
    }
}

/// What a token must grant for this request: pull first, then push.
fn grants_of(asked: &Asked) -> Vec<String> {
    let repository = match asked.route() {
        Route::Manifest { repository, .. }
        | Route::Blob { repository, .. }
        | Route::Upload { repository, .. }
        | Route::Tags { repository }
        | Route::Referrers { repository, .. } => repository,
        Route::Base | Route::Unknown => return Vec::new(),
    };
    let reads = matches!(asked.method, Method::GET | Method::HEAD)
        && !matches!(asked.route(), Route::Upload { .. });
    let actions: &[&str] = if reads { &["pull"] } else { &["pull", "push"] };
    actions.iter().map(|action| format!("repository:{repository}:{action}")).collect()
}

/// `repository:NAME:pull,push` as one grant per action. The name may hold a port's colon.
fn split_scope(scope: &str) -> Vec<String> {
    let Some((resource, actions)) = scope.rsplit_once(':') else { return Vec::new() };
    actions.split(',').map(|action| format!("{resource}:{action}")).collect()
}

fn unauthorized(challenge: &str) -> Reply {
    Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
        .with("www-authenticate", challenge)
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            let padding = digit > group.len();
            text.push(if padding { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    text
}
