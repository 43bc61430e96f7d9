//! `/metrics`, on its own listener.

use http::{HeaderValue, Method, header};

use crate::error::Result;
use crate::http::{Body, RawCtx, Response, Routes};

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, &["/metrics"], metrics).in_maintenance()
}

async fn metrics(ctx: RawCtx) -> Result<Response> {
    let app = &ctx.app;
    app.metrics.refresh(&app.store.stats());
    let mut response = Response::new(Body::from(app.metrics.encode()));
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::App;
    use crate::config::Config;
    use crate::http::{Local, Router};

    #[tokio::test]
    async fn requests_memory_and_store_are_counted() {
        let app = App::in_memory(Config::new(ruma::owned_server_name!("hs.test")));
        let client = Local::new(app.router());
        client.get("/_matrix/client/versions").await;
        client.get("/.well-known/matrix/client").await;
        client.get("/nowhere").await;
        let answer = Local::new(Router::new(app, routes()).unwrap()).get("/metrics").await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        for line in [
            r#"skerry_http_requests_total{method="GET",route="/_matrix/client/versions",status="200"} 1"#,
            r#"skerry_http_requests_total{method="GET",route="/.well-known/matrix/client",status="404"} 1"#,
            r#"skerry_http_requests_total{method="GET",route="(none)",status="404"} 1"#,
            r#"skerry_store{figure="queued_bytes"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let memory = text.lines().find_map(|line| line.strip_prefix("skerry_memory_resident_bytes "));
        assert!(memory.unwrap().parse::<u64>().unwrap() > 1_000_000);
    }
}
