/** An image that is not answered: what is wrong with it, and what to do about it. */
export class Unreadable extends Error {
  constructor(reason, remedy) {
    super(`${reason}; ${remedy}`);
    this.name = "Unreadable";
  }
}

/** A sound file of a kind that is not answered: beside others it is left out, and no fault. */
export class LeftOut extends Unreadable {}

/** Return the error of a file that is cut short or broken. what: "JPEG", or "PNG: " and the fault. */
export function damaged(what) {
  return new Unreadable(`is a truncated or damaged ${what}`, "copy or download it again");
}

/** The reason of what shows nothing; in a series such a slice lies above the head, or below it. */
export const BLANK = "shows fewer than 16 grey levels, as an empty frame or a mask does";
