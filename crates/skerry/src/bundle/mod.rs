//! `skerry bundle`: making, signing, checking and thinning update files. Every verb works on files alone: no server, no
//! network, no clock.
//!
//! Lives here: the verbs and their files. Not here: what a bundle is (the `bundle` crate), where keys are kept (keys.rs), the
//! chain of roots (roots.rs), what people are shown (show.rs).

mod keys;
mod roots;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bundle::{
    Arch, Bundle, Checked, Digest, ImageSource, Inputs, Keep, PartName, Refusal, Request, RequestKind, Signature,
    Store, Trust,
};
use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct BundleArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key that signs. It is sealed with a passphrase; print what others need to know of it.
    Keygen {
        /// The file for the key. It must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        passphrase: keys::PassphraseArgs,
    },
    /// Print the public half of a key.
    Key { file: PathBuf },
    /// Write root documents, and gather their chain.
    Root {
        #[command(subcommand)]
        verb: roots::Verb,
    },
    /// Make a bundle without signatures.
    Create(CreateArgs),
    /// Write what signers have to sign, for a stick that goes to them.
    Request {
        bundle: PathBuf,
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Sign a request, after saying what it is.
    Sign {
        request: PathBuf,
        #[arg(long)]
        key: PathBuf,
        #[arg(short, long)]
        out: PathBuf,
        #[command(flatten)]
        passphrase: keys::PassphraseArgs,
    },
    /// Put signatures into a bundle.
    Attach {
        bundle: PathBuf,
        #[arg(long = "signature", required = true)]
        signatures: Vec<PathBuf>,
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Check a bundle to its last byte, and say what it is.
    Verify {
        bundle: PathBuf,
        /// The root document to believe, or a chain of them.
        #[arg(long, default_value = DEFAULT_ROOT)]
        root: PathBuf,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
        /// Print the bill of materials instead.
        #[arg(long, conflicts_with = "json")]
        sbom: bool,
    },
    /// Leave out what boxes have that run the release of another bundle.
    Thin {
        bundle: PathBuf,
        /// The bundle of the release that they run.
        #[arg(long)]
        base: PathBuf,
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Leave out the images of other machines.
    Strip {
        bundle: PathBuf,
        #[arg(long, value_parser = arch)]
        arch: Arch,
        #[arg(short, long)]
        out: PathBuf,
    },
}

/// Where an image keeps the root document that it was born with.
const DEFAULT_ROOT: &str = "/usr/lib/skerry/trust/root.json";

#[derive(Args)]
struct CreateArgs {
    /// The version, for people: `1.4.0`.
    #[arg(long)]
    version: String,
    /// Rises with each release that closes a hole.
    #[arg(long)]
    security_version: u64,
    /// The lowest one that a box may have to take this step.
    #[arg(long, default_value_t = 0)]
    from_security_version: u64,
    /// When it was made, in seconds since 1970.
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    built_s: u64,
    /// A text file with notes for people.
    #[arg(long)]
    notes: Option<PathBuf>,
    /// The formats of the database that the release reads: `OLDEST..NEWEST`.
    #[arg(long, value_parser = formats)]
    store: Store,
    /// `ARCH=FOLDER`; the folder has root.img, verity.img, kernel.efi and root_hash.txt.
    #[arg(long = "image", required = true, value_parser = image)]
    images: Vec<(Arch, PathBuf)>,
    /// The bill of materials (CycloneDX, JSON).
    #[arg(long)]
    sbom: PathBuf,
    /// The chain of roots (see `bundle root`).
    #[arg(long)]
    roots: PathBuf,
    /// How hard to pack: 1 to 19.
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    #[arg(short, long)]
    out: PathBuf,
}

pub(crate) use roots::believed;
pub(crate) use show::moment;

pub(crate) fn run(args: BundleArgs) -> Result<ExitCode> {
    match args.verb {
        Verb::Keygen { file, passphrase } => print!("{}", show::key(&keys::make(&file, &passphrase)?)),
        Verb::Key { file } => print!("{}", show::key(&keys::public(&file)?)),
        Verb::Root { verb } => roots::run(verb)?,
        Verb::Create(args) => create(args)?,
        Verb::Request { bundle, out } => {
            let document = unjudged(&bundle)?.manifest_bytes().to_vec();
            write_new(&out, Request { kind: RequestKind::Release, document }.to_text().as_bytes())?;
        }
        Verb::Sign { request, key, out, passphrase } => sign(&request, &key, &out, &passphrase)?,
        Verb::Attach { bundle, signatures, out } => attach(&bundle, &signatures, &out)?,
        Verb::Verify { bundle, root, json, sbom } => return verify(&bundle, &root, json, sbom),
        Verb::Thin { bundle, base, out } => thin(&bundle, &base, &out)?,
        Verb::Strip { bundle, arch, out } => {
            let keep = Keep { arches: Some(BTreeSet::from([arch])), ..Keep::default() };
            rewrite(&bundle, &keep, &[], &out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

type Reader = BufReader<File>;

fn open(path: &Path) -> Result<Bundle<Reader>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    Ok(Bundle::open(BufReader::new(file))?)
}

fn unjudged(path: &Path) -> Result<Checked<Reader>> {
    Ok(open(path)?.unjudged()?)
}

fn create(args: CreateArgs) -> Result<()> {
    let notes = args.notes.map(|path| read_text(&path)).transpose()?.unwrap_or_default();
    let mut images = BTreeMap::new();
    for (arch, folder) in &args.images {
        if images.insert(*arch, source(folder)?).is_some() {
            bail!("there are two images for {arch}");
        }
    }
    let inputs = Inputs {
        version: args.version,
        security_version: args.security_version,
        from_security_version: args.from_security_version,
        built_s: args.built_s,
        notes,
        store: args.store,
        images,
        sbom: fs::read(&args.sbom).with_context(|| args.sbom.display().to_string())?,
        roots: roots::read_chain(&args.roots)?,
        level: args.level,
    };
    let mut spool = tempfile::tempfile_in(args.out.parent().unwrap_or(Path::new(".")))?;
    let manifest = whole(&args.out, |out| bundle::build(inputs, &mut spool, out))?;
    Bundle::open(BufReader::new(File::open(&args.out)?))?.unjudged()?.rehearse()?;
    print!("{}", show::manifest(&manifest));
    println!("{}: not signed yet", args.out.display());
    Ok(())
}

fn source(folder: &Path) -> Result<ImageSource<'static>> {
    let part = |name: &str| -> Result<Box<dyn std::io::Read>> {
        let path = folder.join(name);
        Ok(Box::new(File::open(&path).with_context(|| path.display().to_string())?))
    };
    let hash = read_text(&folder.join("root_hash.txt"))?;
    let root_hash = Digest::parse(hash.trim()).context("root_hash.txt has 64 small hexadecimal digits")?;
    Ok(ImageSource { root: part("root.img")?, verity: part("verity.img")?, kernel: part("kernel.efi")?, root_hash })
}

fn sign(request: &Path, key: &Path, out: &Path, passphrase: &keys::PassphraseArgs) -> Result<()> {
    let request = Request::parse(&read_text(request)?)?;
    println!("to be signed: {}", request.subject()?);
    let signature = keys::open(key, passphrase)?.sign(&request)?;
    write_new(out, signature.to_text().as_bytes())?;
    println!("signed by key {}", signature.key);
    Ok(())
}

fn attach(path: &Path, signatures: &[PathBuf], out: &Path) -> Result<()> {
    let signatures: Vec<Signature> =
        signatures.iter().map(|path| Ok(Signature::parse(&read_text(path)?)?)).collect::<Result<_>>()?;
    rewrite(path, &Keep::default(), &signatures, out)
}

fn thin(path: &Path, base: &Path, out: &Path) -> Result<()> {
    let base = unjudged(base)?;
    let parts = [PartName::Root, PartName::Verity, PartName::Kernel];
    let arches = base.manifest().images.keys();
    let chunks = arches.flat_map(|arch| parts.map(|part| base.index(*arch, part))).flatten().flatten();
    let keep = Keep { without: chunks.map(|chunk| chunk.plain).collect(), ..Keep::default() };
    rewrite(path, &keep, &[], out)
}

fn rewrite(path: &Path, keep: &Keep, signatures: &[Signature], out: &Path) -> Result<()> {
    let mut bundle = unjudged(path)?;
    let mut envelope = bundle.envelope().clone();
    envelope.signatures.retain(|old| signatures.iter().all(|new| new.key != old.key));
    envelope.signatures.extend_from_slice(signatures);
    whole(out, |out| bundle::rewrite(&mut bundle, keep, &envelope, out))?;
    println!("{}: {} signatures, {} bytes", out.display(), envelope.signatures.len(), fs::metadata(out)?.len());
    Ok(())
}

/// 0 if a box would believe it; 1, with the reason, if not.
fn verify(path: &Path, root: &Path, json: bool, sbom: bool) -> Result<ExitCode> {
    let named = || format!("{}: the root document to believe (name another with --root)", root.display());
    let trust = Trust::new(&believed(root).with_context(named)?)?;
    let checked = match check(path, &trust) {
        Ok(checked) => checked,
        Err(refusal) => {
            if json {
                println!("{}", serde_json::json!({ "good": false, "refusal": refusal.to_string() }));
            } else {
                println!("REFUSED\n{refusal}");
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    let (mut bundle, report) = checked;
    if sbom {
        std::io::stdout().write_all(&bundle.sbom()?)?;
    } else if json {
        println!("{}", show::json(&bundle, &report));
    } else {
        print!("{}", show::verified(&bundle, &report));
    }
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path, trust: &Trust) -> Result<(Checked<Reader>, bundle::Report), Refusal> {
    let mut bundle = Bundle::open(BufReader::new(File::open(path)?))?.judge(trust)?;
    let mut progress = show::Progress::new(fs::metadata(path)?.len());
    let report = bundle.verify(|bytes| progress.reached(bytes))?;
    progress.end();
    Ok((bundle, report))
}

/// Writes a file that is there only when it is whole and on the disk.
fn whole<T>(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<T, Refusal>) -> Result<T> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| folder.display().to_string())?;
    let mut out = BufWriter::new(file.as_file_mut());
    let made = write(&mut out)?;
    out.flush()?;
    drop(out);
    file.as_file().sync_all()?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(made)
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file =
        File::options().write(true).create_new(true).open(path).with_context(|| path.display().to_string())?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn arch(text: &str) -> Result<Arch, String> {
    match text {
        "x86_64" => Ok(Arch::X86_64),
        "arm64" => Ok(Arch::Arm64),
        _ => Err("x86_64 or arm64".into()),
    }
}

fn image(text: &str) -> Result<(Arch, PathBuf), String> {
    let (name, folder) = text.split_once('=').ok_or("ARCH=FOLDER")?;
    Ok((arch(name)?, folder.into()))
}

/// Formats of the database, as `OLDEST..NEWEST`.
pub(crate) fn formats(text: &str) -> Result<Store, String> {
    let (oldest, newest) = text.split_once("..").ok_or("OLDEST..NEWEST")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is not a number"));
    Ok(Store { oldest: number(oldest)?, newest: number(newest)? })
}
