// The shell's command for what the form would send.

/** A word that a POSIX shell takes as it is. */
export function quoted(word) {
  return /^[\w@%+=:,.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The command that sends these fields, pairs of name and text or File, to the server at origin. */
export function curlCommand(origin, fields, { withKey }) {
  const lines = [`curl ${quoted(`${origin}/v1/videos`)}`];
  if (withKey) lines.push('-H "Authorization: Bearer $WAN_RAY_API_KEY"');
  for (const [name, value] of fields) {
    if (value instanceof File) {
      // curl takes a file's name in double quotes, whatever is in it.
      const file = value.name.replaceAll("\\", "\\\\").replaceAll('"', '\\"');
      lines.push(`-F ${quoted(`${name}=@"${file}"`)}`);
    } else {
      // --form-string: with -F, a text that begins with @ or < would name a file.
      lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    }
  }
  return lines.join(" \\\n  ");
}
