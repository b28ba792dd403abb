/** An image that is not answered: what is wrong with it, and what to do about it. */
export class Unreadable extends Error {
  constructor(reason, remedy) {
    super(`${reason}; ${remedy}`);
    this.name = "Unreadable";
  }
}
