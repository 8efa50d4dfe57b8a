//! Keys that verify signatures (RFC 7518), each for one algorithm: a token never chooses how it is checked.

use aws_lc_rs::{
    hmac,
    signature::{self, ParsedPublicKey, VerificationAlgorithm},
};
use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};
use weir_config::JwtCredential;

/// Padding may be there or not.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// Decodes the URL-safe alphabet.
pub(crate) fn base64_url(text: &str) -> Option<Vec<u8>> {
    BASE64_URL.decode(text).ok()
}

/// Decodes the standard alphabet; line breaks are skipped.
pub(crate) fn base64_text(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.bytes().filter(|b| !b.is_ascii_whitespace()).collect::<Vec<u8>>()).ok()
}

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alg {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

const RSA: [Alg; 6] = [Alg::RS256, Alg::RS384, Alg::RS512, Alg::PS256, Alg::PS384, Alg::PS512];

impl Alg {
    /// By its name in RFC 7518; `none` is none.
    pub(crate) fn named(name: &str) -> Option<Alg> {
        Some(match name {
            "HS256" => Alg::HS256,
            "HS384" => Alg::HS384,
            "HS512" => Alg::HS512,
            "RS256" => Alg::RS256,
            "RS384" => Alg::RS384,
            "RS512" => Alg::RS512,
            "PS256" => Alg::PS256,
            "PS384" => Alg::PS384,
            "PS512" => Alg::PS512,
            "ES256" => Alg::ES256,
            "ES384" => Alg::ES384,
            "ES512" => Alg::ES512,
            "EdDSA" => Alg::EdDSA,
            _ => return None,
        })
    }

    /// `Err`: HMAC.
    fn public(self) -> Result<&'static dyn VerificationAlgorithm, hmac::Algorithm> {
        Ok(match self {
            Alg::HS256 => return Err(hmac::HMAC_SHA256),
            Alg::HS384 => return Err(hmac::HMAC_SHA384),
            Alg::HS512 => return Err(hmac::HMAC_SHA512),
            Alg::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Alg::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Alg::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Alg::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Alg::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Alg::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            Alg::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Alg::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            Alg::ES512 => &signature::ECDSA_P521_SHA512_FIXED,
            Alg::EdDSA => &signature::ED25519,
        })
    }
}

/// A key for one algorithm.
pub(crate) enum Key {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl Key {
    /// An HMAC secret. `None`: it is empty, or the algorithm is none of HMAC's.
    pub(crate) fn secret(alg: Alg, secret: &[u8]) -> Option<Key> {
        let hash = alg.public().err().filter(|_| !secret.is_empty())?;
        Some(Key::Secret(Box::new(hmac::Key::new(hash, secret))))
    }

    /// A public key: SubjectPublicKeyInfo or PKCS#1 in DER, or the bare point of a curve. `None`: it is not one for the algorithm, or an
    /// RSA key of less than 2048 bits.
    pub(crate) fn public(alg: Alg, bytes: &[u8]) -> Option<Key> {
        ParsedPublicKey::new(alg.public().ok()?, bytes).ok().map(Key::Public)
    }

    /// A public key in PEM.
    pub(crate) fn pem(alg: Alg, pem: &str) -> Option<Key> {
        let (_, rest) = pem.split_once("-----BEGIN ")?;
        let (label, rest) = rest.split_once("-----")?;
        let (body, _) = rest.split_once("-----END ")?;
        if !matches!(label, "PUBLIC KEY" | "RSA PUBLIC KEY") {
            return None;
        }
        Key::public(alg, &base64_text(body)?)
    }

    /// Whether the signature is this key's. HMACs are compared in constant time.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Key::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Key::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

/// One of a consumer's `jwt_secrets`.
pub(crate) struct Credential {
    pub(crate) alg: Option<Alg>,
    /// As written.
    plain: Option<Key>,
    /// With the secret decoded from base64.
    decoded: Option<Key>,
}

impl Credential {
    pub(crate) fn new(jwt: &JwtCredential) -> Credential {
        let alg = Alg::named(&jwt.algorithm);
        let (mut plain, mut decoded) = (None, None);
        match (alg, alg.map(Alg::public)) {
            (Some(alg), Some(Err(_))) => {
                if let Some(secret) = &jwt.secret {
                    let secret = secret.expose();
                    plain = Key::secret(alg, secret.as_bytes());
                    let bytes = BASE64_URL.decode(secret).or_else(|_| BASE64.decode(secret)).ok();
                    decoded = bytes.and_then(|bytes| Key::secret(alg, &bytes));
                }
            }
            (Some(alg), Some(Ok(_))) => {
                let key = jwt.rsa_public_key.as_ref().and_then(|pem| Key::pem(alg, pem.expose()));
                if key.is_none() {
                    tracing::error!(plugin = "jwt", key = jwt.key, algorithm = jwt.algorithm, "this is not a public key for the algorithm: its tokens are refused");
                }
                plain = key;
            }
            _ => {}
        }
        Credential { alg, plain, decoded }
    }

    /// Public keys are never in base64 beyond PEM.
    pub(crate) fn key(&self, secret_is_base64: bool) -> Option<&Key> {
        let hmac = matches!(self.alg, Some(Alg::HS256 | Alg::HS384 | Alg::HS512));
        if secret_is_base64 && hmac { self.decoded.as_ref() } else { self.plain.as_ref() }
    }
}

/// A public key of a key set (RFC 7517).
pub(crate) struct Jwk {
    pub(crate) kid: Option<String>,
    /// By algorithm.
    keys: Vec<(Alg, Key)>,
}

impl Jwk {
    /// `None`: it is not a key for signatures that is understood here. Symmetric keys never are: who can fetch the set could sign.
    pub(crate) fn read(jwk: &Map<String, Value>) -> Option<Jwk> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|u| u != "sig") {
            return None;
        }
        if let Some(Value::Array(uses)) = jwk.get("key_ops")
            && !uses.iter().any(|u| u == "verify")
        {
            return None;
        }
        let part = |name: &str| base64_url(text(name)?);
        let (bytes, algs): (Vec<u8>, &[Alg]) = match (text("kty")?, text("crv")) {
            ("RSA", _) => (rsa_der(&part("n")?, &part("e")?), &RSA),
            ("EC", Some(curve)) => {
                let (size, alg): (usize, &[Alg]) = match curve {
                    "P-256" => (32, &[Alg::ES256]),
                    "P-384" => (48, &[Alg::ES384]),
                    "P-521" => (66, &[Alg::ES512]),
                    _ => return None,
                };
                let (x, y) = (part("x")?, part("y")?);
                if x.len() != size || y.len() != size {
                    return None;
                }
                ([&[4], x.as_slice(), &y].concat(), alg)
            }
            ("OKP", Some("Ed25519")) => (part("x")?, &[Alg::EdDSA]),
            _ => return None,
        };
        let only = text("alg");
        let keys: Vec<_> = algs
            .iter()
            .filter(|alg| only.is_none_or(|only| Alg::named(only) == Some(**alg)))
            .filter_map(|alg| Some((*alg, Key::public(*alg, &bytes)?)))
            .collect();
        (!keys.is_empty()).then(|| Jwk { kid: text("kid").map(str::to_owned), keys })
    }

    pub(crate) fn key(&self, alg: Alg) -> Option<&Key> {
        self.keys.iter().find(|(a, _)| *a == alg).map(|(_, key)| key)
    }
}

/// `RSAPublicKey` (RFC 8017 appendix A.1.1) in DER.
fn rsa_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = body.len().to_be_bytes();
        let length = &length[length.iter().take_while(|b| **b == 0).count()..];
        let mut out = vec![tag];
        if body.len() < 128 {
            out.push(body.len() as u8);
        } else {
            out.push(0x80 | length.len() as u8);
            out.extend_from_slice(length);
        }
        out.extend_from_slice(body);
        out
    }
    fn integer(bytes: &[u8]) -> Vec<u8> {
        let bytes = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        // A leading one bit would make it negative.
        let sign: &[u8] = if bytes.first().is_none_or(|b| *b >= 0x80) { &[0] } else { &[] };
        tagged(2, &[sign, bytes].concat())
    }
    tagged(0x30, &[integer(modulus), integer(exponent)].concat())
}
