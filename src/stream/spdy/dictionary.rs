//! The text that both sides of SPDY/3 have in mind before the first header: names and values
//! that are likely, so that they need not be sent. Any difference breaks the compression, so
//! it is checked against its known length and checksum.

use std::sync::LazyLock;

/// The length that the protocol gives the dictionary.
#[cfg(test)]
const LEN: usize = 1423;

/// Its Adler-32, which zlib streams name it by.
pub(super) const ADLER32: u32 = 0xe3c6_a7c2;

/// Each of these with its length before it, as in a header block.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";

/// Status codes, one after the other.
const CODES: &str = "100 101 201 202 205 206 300 302 303 304 305 306 307 402 405 406 407 408 409 410 411 \
    412 413 414 415 416 417 502 504 505";

/// These as they stand.
const PHRASES: [&str; 15] = [
    "203 Non-Authoritative Information",
    "204 No Content",
    "301 Moved Permanently",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "500 Internal Server Error",
    "501 Not Implemented",
    "503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec",
    " 00:00:00",
    " Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
     text/javascript,public",
    "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];

/// The dictionary.
pub(super) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('_', " ");
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend(CODES.bytes().filter(u8::is_ascii_digit));
    dictionary.extend(PHRASES.iter().flat_map(|phrase| phrase.bytes()));
    dictionary
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_the_protocol() {
        assert_eq!(DICTIONARY.len(), LEN);
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            low = (low + u32::from(*byte)) % 65521;
            high = (high + low) % 65521;
        }
        assert_eq!(high << 16 | low, ADLER32);
    }
}
