//! The first set-up as a conversation: questions on a line, answers on a line, on any terminal.

use std::io::{BufRead, Read as _, Write};

use anyhow::{Context as _, Result, bail};

use super::setup::{self, Admin, Certificate, Network, Reach, Setup};

/// Nobody types more on a line.
const LINE_MAX_BYTES: u64 = 4096;

/// Where a conversation is held.
pub(crate) struct Terminal<R, W> {
    pub(crate) input: R,
    pub(crate) output: W,
    /// Turns the echo of what is typed on and off.
    pub(crate) echo: fn(bool),
}

impl<R: BufRead, W: Write> Terminal<R, W> {
    pub(crate) fn say(&mut self, text: &str) -> Result<()> {
        writeln!(self.output, "{text}")?;
        Ok(self.output.flush()?)
    }

    /// A line that was typed.
    ///
    /// # Errors
    /// When nobody is there any more.
    pub(crate) fn line(&mut self, prompt: &str) -> Result<String> {
        write!(self.output, "{prompt}")?;
        self.output.flush()?;
        let mut bytes = Vec::new();
        (&mut self.input).take(LINE_MAX_BYTES).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            bail!("the console is closed");
        }
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A text of any length, no faster than it is read.
    pub(crate) fn pages(&mut self, text: &str) -> Result<()> {
        const PAGE_LINES: usize = 20;
        let lines: Vec<&str> = text.lines().collect();
        for (at, page) in lines.chunks(PAGE_LINES).enumerate() {
            if at > 0 && self.line("-- Enter: go on, q: enough -- ")? == "q" {
                break;
            }
            page.iter().try_for_each(|line| self.say(line))?;
        }
        Ok(())
    }

    /// Asks until the answer is good. An empty line takes what is proposed.
    pub(crate) fn ask<T>(
        &mut self,
        question: &str,
        proposed: &str,
        good: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T> {
        let shown = if proposed.is_empty() { String::new() } else { format!(" [{proposed}]") };
        loop {
            let answer = self.line(&format!("{question}{shown}: "))?;
            match good(if answer.is_empty() { proposed } else { &answer }) {
                Ok(value) => return Ok(value),
                Err(why) => self.say(&format!("  {why}"))?,
            }
        }
    }

    pub(crate) fn agree(&mut self, question: &str) -> Result<bool> {
        self.ask(&format!("{question} (yes/no)"), "no", |answer| match answer {
            "yes" | "y" => Ok(true),
            "no" | "n" => Ok(false),
            _ => Err("yes or no".to_owned()),
        })
    }

    /// A password, typed twice and not shown.
    pub(crate) fn password(&mut self, question: &str) -> Result<String> {
        loop {
            (self.echo)(false);
            let typed = self.line(&format!("{question}: ")).and_then(|first| Ok((first, self.line("\nonce more: ")?)));
            (self.echo)(true);
            let (first, again) = typed?;
            self.say("")?;
            match setup::password(&first) {
                Ok(password) if first == again => return Ok(password),
                Ok(_) => self.say("  these were not the same")?,
                Err(why) => self.say(&format!("  {why}"))?,
            }
        }
    }
}

/// Reads the site's certificate from a stick: chain, key, and the authority's certificate if it is there.
pub(crate) type SitePapers<'f> = &'f mut dyn FnMut() -> Result<Certificate>;

/// Asks for everything, shows it, and asks whether it is right.
pub(crate) fn run<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, site: SitePapers<'_>) -> Result<Setup> {
    terminal.say(INTRODUCTION)?;
    loop {
        let setup = ask(terminal, site)?;
        terminal.say(&summary(&setup))?;
        if terminal.agree("Is this right? The server name can never be changed")? {
            return Ok(setup);
        }
    }
}

const INTRODUCTION: &str =
    "\nThis box is not set up yet. A few questions; an empty line takes what stands in brackets.\n";

fn ask<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, site: SitePapers<'_>) -> Result<Setup> {
    let network = network(terminal)?;
    let server_name = terminal.ask("Server name, the part behind the colon in @user:name", "", setup::server_name)?;
    let address = match &network {
        Network::Static { address, .. } if server_name.parse::<std::net::IpAddr>().is_err() => {
            let question = format!("What apps connect to: the name, if your DNS knows it, or {}", address.address);
            terminal.ask(&question, &server_name, setup::address)?
        }
        _ => terminal.ask("What apps connect to, a name or an IP address", &server_name, setup::address)?,
    };
    terminal.say("\nThis release serves its own users only, and speaks to no other homeserver (isolated).")?;
    let reach = match terminal.agree("Shall the server open connections inside the site (bridges, push gateways)?")? {
        true => Reach::Site,
        false => Reach::Nothing,
    };
    let username = terminal.ask("\nUser name of the administrator", "admin", setup::username)?;
    let password = terminal.password("Password (not shown)")?;
    let certificate = certificate(terminal, site)?;
    Ok(Setup { server_name, address, network, reach, admin: Admin { username, password }, certificate })
}

pub(crate) fn network<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>) -> Result<Network> {
    let address =
        terminal.ask("Network address with prefix, such as 10.1.2.3/24, or `dhcp`", "dhcp", |text| match text {
            "dhcp" => Ok(None),
            text => text.parse().map(Some),
        })?;
    let Some(address) = address else { return Ok(Network::Dhcp) };
    loop {
        let gateway = terminal.ask("Gateway, or `none`", "none", |text| match text {
            "none" => Ok(None),
            text => setup::ip(text).map(Some),
        })?;
        let dns = terminal.ask("DNS servers, or `none`", "none", |text| match text {
            "none" => Ok(Vec::new()),
            text => setup::ips(text),
        })?;
        match setup::network(address, gateway, dns) {
            Ok(network) => return Ok(network),
            Err(why) => terminal.say(&format!("  {why}"))?,
        }
    }
}

fn certificate<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, site: SitePapers<'_>) -> Result<Certificate> {
    let question =
        "\nCertificate: `own` makes an authority for this box, `stick` takes server.pem, server.key (and ca.pem)";
    loop {
        let own = terminal.ask(question, "own", |answer| match answer {
            "own" => Ok(true),
            "stick" => Ok(false),
            _ => Err("own or stick".to_owned()),
        })?;
        if own {
            return Ok(Certificate::Own);
        }
        match site().context("the certificate on the stick") {
            Ok(certificate) => return Ok(certificate),
            Err(why) => terminal.say(&format!("  {why:#}"))?,
        }
    }
}

fn summary(setup: &Setup) -> String {
    let network = match &setup.network {
        Network::Dhcp => "by DHCP".to_owned(),
        Network::Static { address, gateway, .. } => {
            gateway.map_or(address.to_string(), |gateway| format!("{address}, gateway {gateway}"))
        }
    };
    let reach = match setup.reach {
        Reach::Nothing => "none",
        Reach::Site => "inside the site",
    };
    let certificate = match setup.certificate {
        Certificate::Own => "from an authority of its own",
        Certificate::Site { .. } => "the site's",
    };
    format!(
        "\n  server name     {}\n  address         {}\n  network         {network}\n  own connections {reach}\n  \
         administrator   @{}:{}\n  certificate     {certificate}\n",
        setup.server_name,
        setup.url(),
        setup.admin.username,
        setup.server_name,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(lines: &str) -> (Result<Setup>, String) {
        let mut terminal = Terminal { input: lines.as_bytes(), output: Vec::new(), echo: |_| {} };
        let mut site = || -> Result<Certificate> { bail!("no stick is there") };
        let outcome = run(&mut terminal, &mut site);
        (outcome, String::from_utf8(terminal.output).unwrap())
    }

    #[test]
    fn a_conversation_of_a_few_lines() {
        let lines = "\nbox.example\n\n\n\ncorrect horse\ncorrect horse\n\nyes\n";
        let (setup, said) = talk(lines);
        let setup = setup.unwrap();
        assert_eq!((setup.server_name.as_str(), setup.url().as_str()), ("box.example", "https://box.example"));
        assert_eq!(
            (setup.network, setup.reach, setup.admin.username.as_str()),
            (Network::Dhcp, Reach::Nothing, "admin")
        );
        assert!(setup.certificate == Certificate::Own);
        assert!(said.contains("@admin:box.example") && !said.contains("correct horse"), "{said}");
    }

    #[test]
    fn wrong_answers_are_asked_again() {
        let lines = "10.1.2.3\n10.1.2.3/24\n10.9.9.9\nnone\n10.1.2.1\n10.1.2.2, 10.1.2.1\nhttps://x\nbox\n10.1.2.3\nperhaps\n\
                     yes\nRoot\nroot\nshort\nshort\nlong enough\nlong enouhg\nlong enough\nlong enough\nstick\nown\ny\n";
        let (setup, said) = talk(lines);
        let setup = setup.unwrap();
        assert_eq!(
            (setup.url().as_str(), setup.reach, setup.admin.username.as_str()),
            ("https://10.1.2.3", Reach::Site, "root")
        );
        let Network::Static { dns, .. } = setup.network else { panic!("{said}") };
        assert_eq!(dns.len(), 2);
        for complaint in [
            "not an address with its prefix",
            "is not in the network",
            "is not a name",
            "yes or no",
            "lower case",
            "10 to 512",
            "not the same",
            "no stick is there",
        ] {
            assert!(said.contains(complaint), "{complaint}: {said}");
        }
    }

    #[test]
    fn no_begins_anew_and_a_closed_console_ends() {
        let once = "\nbox.example\n\n\n\ncorrect horse\ncorrect horse\n\n";
        let (setup, _) = talk(&format!("{once}no\n{}yes\n", once.replace("box.", "other.")));
        assert_eq!(setup.unwrap().server_name, "other.example");
        assert!(talk(once).0.is_err());
        assert!(talk(&"x".repeat(100_000)).0.is_err());
    }
}
