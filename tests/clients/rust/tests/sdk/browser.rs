//! The browser of a person: follows redirects on the server, keeps its cookie, fills in forms and presses buttons.
//!
//! It reads the little HTML that the server's own pages have: forms with inputs and buttons, no scripts.

use std::collections::BTreeMap;

use matrix_sdk::reqwest::header::{CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use matrix_sdk::reqwest::redirect::Policy;
use matrix_sdk::reqwest::{Client, Method, StatusCode, Url};

use crate::person::PASSWORD;
use crate::server::Server;

pub struct Browser {
    http: Client,
    home: String,
    cookies: BTreeMap<String, String>,
    url: Url,
    text: String,
    forms: Vec<Form>,
}

struct Form {
    method: Method,
    action: Url,
    fields: BTreeMap<String, String>,
    buttons: Vec<Button>,
}

struct Button {
    label: String,
    field: Option<(String, String)>,
}

impl Browser {
    pub fn of(server: &Server) -> Self {
        let mut http = Client::builder().redirect(Policy::none());
        if let Some(root) = &server.root {
            http = http.tls_certs_only([root.clone()]);
        }
        Browser {
            http: http.build().unwrap(),
            home: server.url.clone(),
            cookies: BTreeMap::new(),
            url: server.url.parse().unwrap(),
            text: String::new(),
            forms: Vec::new(),
        }
    }

    /// Goes to an address, and on to where that leads. If that is not the server's, it stops there without asking it.
    pub async fn open(&mut self, url: Url) -> Url {
        self.load(Method::GET, url, None).await
    }

    /// Types into the fields of this name.
    pub fn fill(&mut self, name: &str, value: &str) {
        let fields = self.forms.iter_mut().filter_map(|form| form.fields.get_mut(name));
        let filled = fields.map(|field| value.clone_into(field)).count();
        assert!(filled > 0, "no field {name} in\n{}", self.text);
    }

    /// Sends the form with this button; where that leads.
    pub async fn press(&mut self, label: &str) -> Url {
        let has = |form: &&Form| form.buttons.iter().any(|button| button.label == label);
        let form = self.forms.iter().find(has).unwrap_or_else(|| panic!("no button {label} in\n{}", self.text));
        let mut fields = form.fields.clone();
        fields.extend(form.buttons.iter().find(|button| button.label == label).and_then(|button| button.field.clone()));
        let mut target = form.action.clone();
        let (method, mut encoded) = (form.method.clone(), target.clone());
        encoded.query_pairs_mut().clear().extend_pairs(&fields);
        let body = encoded.query().unwrap_or_default().to_owned();
        if method == Method::GET {
            target.set_query(Some(&body));
            return self.load(Method::GET, target, None).await;
        }
        self.load(method, target, Some(body)).await
    }

    pub async fn logs_in(&mut self, name: &str) -> Url {
        self.fill("username", name);
        self.fill("password", PASSWORD);
        self.press("Log in").await
    }

    /// Whether the page says that.
    pub fn shows(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    async fn load(&mut self, mut method: Method, mut url: Url, mut form: Option<String>) -> Url {
        for _ in 0..10 {
            if url.origin().ascii_serialization() != self.home {
                return url;
            }
            let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut request = self.http.request(method, url.clone()).header(COOKIE, cookies.join("; "));
            if let Some(form) = form.take() {
                request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
            }
            let answer = request.send().await.unwrap();
            for cookie in answer.headers().get_all(SET_COOKIE) {
                let cookie = cookie.to_str().unwrap();
                assert!(cookie.contains("; Secure") && cookie.contains("; HttpOnly"), "{cookie}");
                let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            if let Some(location) = answer.headers().get(LOCATION) {
                assert_eq!(answer.status(), StatusCode::SEE_OTHER);
                (method, url) = (Method::GET, url.join(location.to_str().unwrap()).unwrap());
                continue;
            }
            let status = answer.status();
            self.text = answer.text().await.unwrap();
            assert!(status.is_success(), "{url}: {status}\n{}", self.text);
            self.forms = between(&self.text, "<form", "</form>").map(|form| Form::read(form, &url)).collect();
            self.url = url;
            return self.url.clone();
        }
        panic!("too many redirects, at last to {url}");
    }
}

impl Form {
    fn read(html: &str, page: &Url) -> Self {
        let (head, inside) = html.split_once('>').unwrap();
        let method = if attribute(head, "method").as_deref() == Some("post") { Method::POST } else { Method::GET };
        let action = page.join(&attribute(head, "action").unwrap()).unwrap();
        let input = |input: &str| {
            let ticked = attribute(input, "type").is_none_or(|kind| kind != "checkbox");
            let name = attribute(input, "name").filter(|_| ticked)?;
            Some((name, attribute(input, "value").unwrap_or_default()))
        };
        let fields = between(inside, "<input", ">").filter_map(input).collect();
        let button = |button: &str| {
            let (head, label) = button.split_once('>').unwrap();
            let field = attribute(head, "name").zip(attribute(head, "value"));
            Button { label: plain(label), field }
        };
        let buttons = between(inside, "<button", "</button>").map(button).collect();
        Form { method, action, fields, buttons }
    }
}

/// What stands between each `start` and the `end` after it.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).map(move |rest| rest.split(end).next().unwrap())
}

fn attribute(head: &str, name: &str) -> Option<String> {
    let (_, rest) = head.split_once(&format!(" {name}=\""))?;
    Some(plain(rest.split('"').next()?))
}

fn plain(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&#39;", "'").replace("&amp;", "&")
}
