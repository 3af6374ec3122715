use super::*;
use crate::notify::mail::tests::{log_file, long_log};

#[test]
fn a_log_that_fits_is_shown_whole() {
    let (_dir, path) = log_file("one\r\n10%\r20%\ntwo\n");
    let (excerpt, attachment) = read_log(&path).expect("read");
    assert_eq!(
        excerpt,
        LogExcerpt {
            tail: "one\n10%\n20%\ntwo\n".into(),
            rest: LogRest::Shown
        }
    );
    assert_eq!(attachment, None);
}

#[test]
fn a_missing_log_is_an_empty_one() {
    let (excerpt, attachment) = read_log(Path::new("/nowhere/build.log")).expect("no error");
    assert_eq!(
        excerpt,
        LogExcerpt {
            tail: String::new(),
            rest: LogRest::Shown
        }
    );
    assert_eq!(attachment, None);
}

#[test]
fn the_tail_of_a_long_log_is_whole_lines() {
    let (_dir, many_lines) = log_file(long_log(TAIL_LINES + 1));
    let (excerpt, attachment) = read_log(&many_lines).expect("read");
    assert_eq!(excerpt.tail.lines().count(), TAIL_LINES);
    assert_eq!(excerpt.rest, LogRest::Attached);
    assert!(attachment.is_some());

    let wide = format!("{}\n", "x".repeat(20_000)).repeat(3);
    let (_dir, wide_lines) = log_file(wide);
    let (excerpt, _) = read_log(&wide_lines).expect("read");
    assert_eq!(excerpt.tail.len(), 20_001);

    let (_dir, one_line) = log_file("ä".repeat(20_000));
    let (excerpt, _) = read_log(&one_line).expect("read");
    assert!(excerpt.tail.len() <= TAIL_BYTES as usize && excerpt.tail.ends_with('ä'));
}

#[test]
fn of_a_log_that_compresses_to_too_much_the_end_is_attached() {
    let log = long_log(1000);
    let (_dir, path) = log_file(&log);
    let mut file = File::open(&path).expect("the log");
    let whole = compress(log.as_bytes(), usize::MAX).expect("in memory");
    let whole = whole.expect("fits");

    let fits = attach(&mut file, whole.len()).expect("read");
    assert_eq!(fits, (whole.clone(), LogRest::Attached));

    let (attachment, rest) = attach(&mut file, whole.len() - 1).expect("read");
    assert_eq!(rest, LogRest::EndAttached);
    let text = gunzip(&attachment);
    let (note, end) = text.split_once('\n').expect("lines");
    assert!(log.ends_with(end), "{end}");
    let cut_bytes = log.len() - end.len();
    assert_eq!(
        note,
        format!("[compose-ci: {cut_bytes} bytes of the log before this do not fit into a mail]")
    );
    assert!(
        cut_bytes.abs_diff(log.len() / 2) < 40,
        "about half: {cut_bytes}"
    );
    assert!(log[..cut_bytes].ends_with('\n'), "whole lines");
}

#[test]
fn of_one_endless_line_the_end_is_attached_too() {
    let line = long_log(1000).replace('\n', "");
    let (_dir, path) = log_file(&line);
    let mut file = File::open(&path).expect("the log");
    let (attachment, rest) = attach(&mut file, 4096).expect("read");
    assert_eq!(rest, LogRest::EndAttached);
    assert!(attachment.len() <= 4096);
    let text = gunzip(&attachment);
    let (_note, end) = text.split_once('\n').expect("the note's line");
    assert!(line.ends_with(end) && end.len() > 1000, "{end}");
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    let read = flate2::read::GzDecoder::new(bytes).read_to_string(&mut text);
    read.expect("it is gzip and text");
    text
}
